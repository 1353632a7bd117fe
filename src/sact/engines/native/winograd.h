// 3x3 convolutions by tiles of 2x2 outputs: F(2x2, 3x3) of Winograd's minimal filtering (Lavin and Gray 2016, section
// 4.1), 16 products per tile and pair of channels where the direct way takes 36. Only tiles with a wanted output are
// computed. Inputs that nobody computed are read as zeros: they weigh on outputs that nobody wants.
#pragma once
#include "convolve.h"

namespace sact {

constexpr double kIntoProducts = 48, kFromProducts = 28; // loads, sums and stores per tile and channel

// Whether tiles take less work than `count` outputs one by one. Few rows cost as much as kRows: weights are read anyway.
inline bool tiles_pay(const Conv &conv, int count, int tiles) {
    if (!conv.tiled()) return false;
    const double in = conv.depth, out = padded(conv.out);
    const double by_tile = std::max(tiles, kRows) * (kProducts * in * out + kIntoProducts * in + kFromProducts * out);
    return by_tile < std::max(count, kRows) * 9.0 * in * out;
}

// The 16 inputs of a tile, each `width` floats, as its factors B^T d B, one behind the other.
inline void into_factors(const float *const in[kProducts], float *to, int width) {
    for (int c = 0; c < width; c += kWidth) {
        Vec rows[4][4];
        for (int x = 0; x < 4; x++) {
            const Vec d0 = load(in[x] + c), d1 = load(in[4 + x] + c), d2 = load(in[8 + x] + c), d3 = load(in[12 + x] + c);
            rows[0][x] = d0 - d2;
            rows[1][x] = d1 + d2;
            rows[2][x] = d2 - d1;
            rows[3][x] = d1 - d3;
        }
        for (int y = 0; y < 4; y++) {
            const Vec *r = rows[y];
            float *row = to + 4 * y * width + c;
            store(row, r[0] - r[2]);
            store(row + width, r[1] + r[2]);
            store(row + 2 * width, r[2] - r[1]);
            store(row + 3 * width, r[1] - r[3]);
        }
    }
}

// A tile's 16 products, `step` floats apart, as its 2x2 outputs A^T m A.
inline void from_products(const float *products, int step, Vec bias, Vec out[4]) {
    Vec top[4], bottom[4];
    for (int x = 0; x < 4; x++) {
        const Vec m0 = load(products + x * step), m1 = load(products + (4 + x) * step);
        const Vec m2 = load(products + (8 + x) * step), m3 = load(products + (12 + x) * step);
        top[x] = m0 + m1 + m2;
        bottom[x] = m1 - m2 - m3;
    }
    out[0] = top[0] + top[1] + top[2] + bias;
    out[1] = top[1] - top[2] - top[3] + bias;
    out[2] = bottom[0] + bottom[1] + bottom[2] + bias;
    out[3] = bottom[1] - bottom[2] - bottom[3] + bias;
}

// out = conv(in) at the rows of `tiles`; `in` has a map, `pitch` is that of its cells.
inline void convolve_tiles(Session &s, const Conv &conv, const Source &in, const Target &out, const Tiles &tiles,
                           int pitch) {
    const int count = int(tiles.cells.size()), width = padded(conv.depth);
    // One cache line more than the 16, so that tiles do not share a set of the first cache.
    const size_t factors_stride = kProducts * width + 16, products_stride = kProducts * kPanel + 16;
    const bool alone = s.team.size() == 1 || double(count) * kProducts * conv.depth * padded(conv.out) < kSmall;
    const Cut parts = cut(kProducts * conv.depth + 4 * padded(conv.out), double(kProducts) * conv.depth * padded(conv.out),
                          conv.panels, count, alone ? 1 : s.team.size());
    int32_t offsets[kProducts];
    for (int t = 0; t < kProducts; t++) offsets[t] = (t / 4 - 1) * pitch + t % 4 - 1;
    auto transform = [&](int from, int to, float *factors) {
        for (int m = from; m < to; m++, factors += factors_stride) {
            const float *rows[kProducts];
            const int32_t *map = in.map + tiles.cells[m];
            for (int t = 0; t < kProducts; t++) rows[t] = in.base + size_t(map[offsets[t]]) * in.stride;
            into_factors(rows, factors, width);
        }
    };
    const float *shared = nullptr;
    if (parts.groups > 1) { // every group would do it again
        float *all = s.prepared.need(count * factors_stride);
        over_rows(s, count, std::max(2, count / (4 * s.team.size())), alone,
                  [&](int from, int to) { transform(from, to, all + from * factors_stride); });
        shared = all;
    }
    auto task = [&](int index, int thread) {
        const int group = index / parts.chunks, piece = index % parts.chunks;
        const int from = part(count, parts.chunks, piece), to = part(count, parts.chunks, piece + 1);
        if (from == to) return;
        const int length = to - from, groups = (length + kRows - 1) / kRows;
        float *products = s.scratch[thread].need(length * (products_stride + (shared ? 0 : factors_stride)));
        const float *factors = shared ? shared + from * factors_stride : products + length * products_stride;
        if (!shared) transform(from, to, products + length * products_stride);
        const int first = part(conv.panels, parts.groups, group), last = part(conv.panels, parts.groups, group + 1);
        const float zeros[kPanel] = {};
        for (int panel = first; panel < last; panel++) {
            const int columns = conv.vectors(panel) * kWidth;
            const float *weights = conv.tile_panel(panel);
            for (int x = 0; x < kProducts; x++, weights += conv.depth * columns)
                for (int i = 0; i < groups; i++) {
                    const int m0 = part(length, groups, i), m1 = part(length, groups, i + 1);
                    const float *rows[kRows];
                    float *outs[kRows];
                    for (int m = m0; m < m1; m++) {
                        rows[m - m0] = factors + m * factors_stride + x * width;
                        outs[m - m0] = products + m * products_stride + x * columns;
                    }
                    const size_t next = sizeof(float) * conv.depth * columns;
                    multiply(Tile{rows, 1, conv.depth, weights, zeros, outs, false, 1.0f,
                                  reinterpret_cast<const char *>(weights) + next + i * (next / groups),
                                  sizeof(float) * columns / groups},
                             m1 - m0, conv.vectors(panel));
                }
            for (int m = 0; m < length; m++)
                for (int c = 0; c < columns; c += kWidth) {
                    Vec result[4];
                    const int channel = panel * kPanel + c;
                    from_products(products + m * products_stride + c, columns, load(&conv.bias[channel]), result);
                    for (int corner = 0; corner < 4; corner++) {
                        const int place = tiles.outputs[4 * (from + m) + corner];
                        if (place < 0) continue;
                        float *at = out.base + size_t(out.rows ? out.rows[place] : place) * out.stride + channel;
                        Vec value = result[corner];
                        if (out.add) value += load(at);
                        store(at, out.slope == 1.0f ? value : activate(value, out.slope));
                    }
                }
        }
    };
    share_out(s, parts.chunks * parts.groups, alone, task);
}

} // namespace sact
