// 3x3 convolutions by tiles of 2x2 outputs, Winograd's minimal filtering (Lavin and Gray 2016, section 4.1): 16 products
// per pair of channels where the direct way takes 36. With stride 2, where odd and even inputs meet taps of their own, 25.
// Only tiles with a wanted output are computed. Inputs that nobody computed are read as zeros: they weigh on outputs that
// nobody wants.
#pragma once
#include "convolve.h"

namespace sact {

constexpr int kFewRows = 20;         // fewer cost as much as these, since weights are read anyway
constexpr size_t kNear = 128 * 1024; // bytes of a panel's weights that stay in a core's cache while all tiles use them

// Whether tiles take less work than `count` outputs one by one.
inline bool tiles_pay(const Conv &conv, int count, int tiles) {
    if (!conv.products) return false;
    const double in = conv.depth, out = padded(conv.out);
    const double sums = 3.0 * conv.products * in + 2.0 * conv.products * out; // loads and stores too
    return std::max(tiles, kFewRows) * (conv.products * in * out + sums) < std::max(count, kFewRows) * 9.0 * in * out;
}

// In one dimension: B^T d, and A^T m.
template <int Side> void factors_of(const Vec d[Side], Vec to[Side]) {
    const Vec first = d[0] - d[2];
    if (Side == 4) {
        const Vec all[4] = {first, d[1] + d[2], d[2] - d[1], d[1] - d[3]};
        std::copy_n(all, Side, to);
    } else {
        const Vec all[5] = {first, d[2], d[Side - 1] - d[2], d[1], d[3]};
        std::copy_n(all, Side, to);
    }
}
template <int Side> void outputs_of(const Vec m[Side], Vec to[2]) {
    to[0] = m[0] + m[1] + m[Side == 4 ? 2 : 3];
    to[1] = Side == 4 ? m[1] - m[2] - m[3] : m[1] + m[2] + m[Side - 1];
}

// A tile's inputs, each `width` floats, as its factors B^T d B, one behind the other.
template <int Side> void into_factors(const float *const *in, float *to, int width) {
    for (int c = 0; c < width; c += kWidth) {
        Vec across[Side][Side];
        for (int y = 0; y < Side; y++) {
            Vec d[Side];
            for (int x = 0; x < Side; x++) d[x] = load(in[y * Side + x] + c);
            factors_of<Side>(d, across[y]);
        }
        for (int x = 0; x < Side; x++) {
            Vec d[Side];
            for (int y = 0; y < Side; y++) d[y] = across[y][x];
            factors_of<Side>(d, d);
            for (int y = 0; y < Side; y++) store(to + (y * Side + x) * width + c, d[y]);
        }
    }
}

// A tile's products, `step` floats apart, as its 2x2 outputs A^T m A.
template <int Side> void from_products(const float *products, int step, Vec out[4]) {
    Vec across[2][Side];
    for (int y = 0; y < Side; y++) {
        Vec m[Side], two[2];
        for (int x = 0; x < Side; x++) m[x] = load(products + (y * Side + x) * step);
        outputs_of<Side>(m, two);
        for (int x = 0; x < 2; x++) across[x][y] = two[x];
    }
    for (int x = 0; x < 2; x++) {
        Vec two[2];
        outputs_of<Side>(across[x], two);
        for (int y = 0; y < 2; y++) out[2 * y + x] = two[y];
    }
}

// out = conv(in) at tiles: `outputs` as in Tiles; in.cells are the tiles', in.offsets their inputs'.
template <int Side>
void convolve_tiles(Session &s, const Conv &conv, const Source &in, const Target &out, const Index &outputs) {
    constexpr int kProducts = Side * Side;
    const int count = int(outputs.size() / 4), width = padded(conv.depth);
    // One cache line more than the factors, so that tiles do not share a set of the first cache.
    const size_t factors_step = kProducts * width + 16, products_step = kProducts * kPanel + 16;
    const double weight_floats = double(kProducts) * conv.depth * padded(conv.out);
    const bool alone = s.team.size() == 1 || count * weight_floats < kSmall;
    const Cut parts = cut(kProducts * conv.depth + 4 * padded(conv.out), weight_floats, conv.panels, count,
                          alone ? 1 : s.team.size());
    auto transform = [&](int from, int to, float *factors) {
        for (int m = from; m < to; m++, factors += factors_step) {
            const float *rows[kProducts];
            const int32_t *map = in.map + in.cells[m];
            for (int t = 0; t < kProducts; t++) rows[t] = in.base + size_t(map[in.offsets[t]]) * in.stride;
            into_factors<Side>(rows, factors, width);
        }
    };
    const float *shared = nullptr;
    if (parts.groups > 1) { // every group would do it again
        float *all = s.prepared.need(count * factors_step);
        over_rows(s, count, std::max(2, count / (4 * s.team.size())), alone,
                  [&](int from, int to) { transform(from, to, all + from * factors_step); });
        shared = all;
    }
    auto task = [&](int index, int thread) {
        const int group = index % parts.groups, piece = index / parts.groups; // a core keeps to its rows
        const int from = part(count, parts.chunks, piece), to = part(count, parts.chunks, piece + 1);
        if (from == to) return;
        const int length = to - from, strips = (length + kRows - 1) / kRows;
        float *products = s.scratch[thread].need(length * (products_step + (shared ? 0 : factors_step)));
        const float *factors = shared ? shared + from * factors_step : products + length * products_step;
        if (!shared) transform(from, to, products + length * products_step);
        const int first = part(conv.panels, parts.groups, group), last = part(conv.panels, parts.groups, group + 1);
        for (int panel = first; panel < last; panel++) {
            const int vectors = conv.vectors(panel), columns = vectors * kWidth;
            const size_t matrix = size_t(conv.depth) * columns;
            const float *weights = conv.tile_weights() + panel * kPanel * size_t(conv.depth) * kProducts;
            // Weights that stay near are used strip by strip, others are read once.
            const int at_once = sizeof(float) * matrix * kProducts <= kNear ? kProducts : 1;
            for (int p = 0; p < kProducts; p += at_once)
                for (int i = 0; i < strips; i++) {
                    const int m = part(length, strips, i), end = part(length, strips, i + 1);
                    multiply(Products{factors + m * factors_step + p * width, factors_step, width, conv.depth,
                                      weights + p * matrix, products + m * products_step + p * columns, products_step,
                                      at_once},
                             end - m, vectors);
                }
            for (int m = 0; m < length; m++)
                for (int c = 0; c < columns; c += kWidth) {
                    Vec result[4];
                    const int channel = panel * kPanel + c;
                    const Vec bias = load(&conv.bias[channel]);
                    from_products<Side>(products + m * products_step + c, columns, result);
                    for (int corner = 0; corner < 4; corner++) {
                        const int place = outputs[4 * size_t(from + m) + corner];
                        if (place < 0) continue;
                        float *at = out.base + size_t(out.rows ? out.rows[place] : place) * out.stride + channel;
                        Vec value = result[corner] + bias;
                        if (out.add) value += load(at);
                        store(at, out.activation.none() ? value : out.activation(value));
                    }
                }
        }
    };
    share_out(s, parts.chunks * parts.groups, alone, task);
}

inline void convolve_tiles(Session &s, const Conv &conv, const Source &in, const Target &out, const Index &outputs) {
    if (conv.side == 4)
        convolve_tiles<4>(s, conv, in, out, outputs);
    else
        convolve_tiles<5>(s, conv, in, out, outputs);
}

} // namespace sact
