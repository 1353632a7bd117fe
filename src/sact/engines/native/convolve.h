// A convolution at listed rows, cut into tasks for the threads of a team.
#pragma once
#include <unistd.h>

#include <vector>

#include "sites.h"
#include "team.h"
#include "weights.h"

namespace sact {

constexpr size_t kL2 = 384 * 1024; // bytes of rows that one task works through again for each panel of weights
#ifdef SACT_CHECK // for tests: small batches have groups of several images too
constexpr int kShares = 2;
#else
constexpr int kShares = 16; // into which a batch is cut at least, where it has as many images
#endif
constexpr size_t kL3 = 32 << 20; // bytes of weights that several cores can read over and over
constexpr double kSmall = 40000; // multiply-adds below which a step is not worth sharing out

// Floats from one row to the next: not a multiple of the distance at which addresses share a set of the first cache.
inline int row_stride(int channels) {
    const int width = padded(channels);
    return width % 512 ? width : width + 16;
}

// What one run works in; kept for the next one.
struct Session {
    explicit Session(int threads) : team(threads), process(getpid()), scratch(threads), own(threads) {}
    Team team;
    pid_t process;
    Buffer images, state[2], output, rows[3], prepared, activated, sums, frozen, mean, global, cumulative, remainder;
    std::vector<Buffer> scratch;               // of each thread
    std::vector<std::unique_ptr<Session>> own; // of each thread, for images that it runs alone
    Layouts layouts;
    Sites sites;
    Index cells, tile_cells, units;
    std::vector<uint8_t> goes_on;

    int64_t bytes() const {
        size_t total = 0;
        for (const Buffer *buffer : {&images, &state[0], &state[1], &output, &rows[0], &rows[1], &rows[2], &prepared,
                                     &activated, &sums, &frozen, &mean, &global, &cumulative, &remainder})
            total += buffer->bytes();
        for (const Buffer &buffer : scratch) total += buffer.bytes();
        total += (cells.capacity() + tile_cells.capacity() + units.capacity()) * sizeof(int32_t) + goes_on.capacity();
        for (const auto &session : own) total += session ? session->bytes() : 0;
        return int64_t(total) + sites.bytes() + layouts.bytes();
    }
};

// Where a convolution's rows are: tap t of output m is row map[cells[m] + offsets[t]] (or cells[m] + offsets[t] without
// a map), or row rows[m] (or m) where there is one tap.
struct Source {
    const float *base;
    size_t stride;
    const int32_t *rows = nullptr;
    const int32_t *cells = nullptr, *map = nullptr;
    const int32_t *offsets = nullptr;

    // The row of a single tap.
    const float *row(int m) const {
        const int32_t at = rows ? rows[m] : map ? map[cells[m] + offsets[0]] : m;
        return base + size_t(at) * stride;
    }
};

struct Target {
    float *base;
    size_t stride;
    const int32_t *rows = nullptr; // null: row m
    bool add = false;
    Activation activation = {}; // of the result
};

// Ranges of about equal length.
inline int part(int total, int parts, int index) { return int(int64_t(total) * index / parts); }

// Run task(index, thread) for every index below `tasks`, in this thread alone where sharing them out does not pay.
template <class Task> void share_out(Session &s, int tasks, bool alone, const Task &task) {
    if (alone)
        for (int i = 0; i < tasks; i++) task(i, 0);
    else
        s.team.run(tasks, task);
}

// Share `count` rows out in pieces of a fixed length.
template <class Work> void over_rows(Session &s, int count, int piece, bool alone, const Work &work) {
    share_out(s, (count + piece - 1) / piece, alone,
              [&](int i, int) { work(i * piece, std::min(count, (i + 1) * piece)); });
}

// How a convolution is cut into tasks: chunks of rows times groups of panels.
struct Cut {
    int chunks = 1, groups = 1;
};

// Of a matrix product: floats per row that it reads and writes, and those of its weights.
inline Cut cut(double row_floats, double weight_floats, int panels, int count, int threads) {
    const int tiles = (count + kRows - 1) / kRows;
    Cut result;
    result.chunks = std::max(1, int(count * row_floats * sizeof(float) / kL2));
    if (threads == 1) return result;
    // Enough tasks for cores of unequal speed, none of them tiny; and what is larger is split first, rows or panels of
    // weights, so that each core reads its own part.
    const int wanted = std::max(1, std::min(8 * threads, int(count * weight_floats / kSmall)));
    const bool panels_first = weight_floats > count * row_floats;
    if (panels_first) result.groups = std::min(panels, wanted);
    while (result.groups > 1 && panels % result.groups) result.groups--;
    const int rest = (wanted + result.groups - 1) / result.groups;
    result.chunks = std::min(tiles, std::max(result.chunks, rest));
    if (result.chunks > threads) result.chunks -= result.chunks % threads; // the same rows for the same core
    if (!panels_first && result.chunks < threads) result.groups = std::min(panels, wanted / result.chunks + 1);
    return result;
}

// A depthwise convolution: Rows outputs, `Vectors` vectors of their channels from channel c on. in: [Rows * taps].
template <int Rows, int Vectors>
void depthwise_tile(const Conv &conv, const float *weights, const float *const *in, float *const *out, int c,
                    const Activation &activation, bool add) {
    Vec sums[Rows][Vectors];
    for (int j = 0; j < Vectors; j++)
        for (int i = 0; i < Rows; i++) sums[i][j] = load(&conv.bias[c + j * kWidth]);
    for (int t = 0; t < conv.taps; t++, weights += conv.row) {
        Vec w[Vectors];
        for (int j = 0; j < Vectors; j++) w[j] = load(weights + c + j * kWidth);
#pragma GCC unroll 8
        for (int i = 0; i < Rows; i++) {
            const float *row = in[i * conv.taps + t] + c;
#pragma GCC unroll 2
            for (int j = 0; j < Vectors; j++) sums[i][j] += load(row + j * kWidth) * w[j];
        }
    }
    if (add)
        for (int i = 0; i < Rows; i++)
            for (int j = 0; j < Vectors; j++) sums[i][j] += load(out[i] + c + j * kWidth);
    activation.apply<Rows, Vectors>(sums);
    for (int i = 0; i < Rows; i++)
        for (int j = 0; j < Vectors; j++) store(out[i] + c + j * kWidth, sums[i][j]);
}
template <int Rows>
void depthwise_rows(const Conv &conv, const float *weights, const float *const *in, float *const *out, int from, int to,
                    const Activation &activation, bool add) {
    int c = from;
    for (; c + 2 * kWidth <= to; c += 2 * kWidth)
        depthwise_tile<Rows, 2>(conv, weights, in, out, c, activation, add);
    if (c < to) depthwise_tile<Rows, 1>(conv, weights, in, out, c, activation, add);
}

constexpr int kNearWeights = 1536; // floats of a depthwise convolution's weights
constexpr int kPointers = 64 * 9; // to rows that a piece of a depthwise convolution reads: they stay in the first cache

// out = conv(in) at `count` rows, each channel by itself.
inline void depthwise(Session &s, const Conv &conv, const Source &in, const Target &out, int count) {
    const int piece = kPointers / conv.taps;
    // Channels whose weights stay in the first cache meanwhile; rows are read from end to end where that is all of them.
    const int channels = std::max(1, kNearWeights / (conv.taps * 2 * kWidth)) * 2 * kWidth;
    over_rows(s, count, piece, s.team.size() == 1 || double(count) * conv.taps * conv.row < kSmall, [&](int a, int b) {
        const float *rows[kPointers];
        float *outs[kPointers / 9];
        const float **row = rows;
        for (int m = a; m < b; m++) {
            outs[m - a] = out.base + size_t(out.rows ? out.rows[m] : m) * out.stride;
            const int32_t *map = in.map + in.cells[m];
            for (int t = 0; t < conv.taps; t++) *row++ = in.base + size_t(map[in.offsets[t]]) * in.stride;
        }
        constexpr int kTogether = kWidth == 16 ? 8 : 4; // outputs, whose sums stay in registers
        const float *weights = conv.weights();
        for (int c = 0; c < conv.row; c += channels) {
            const int end = std::min(c + channels, conv.row);
            int m = 0;
            for (; m + kTogether <= b - a; m += kTogether)
                depthwise_rows<kTogether>(conv, weights, rows + m * conv.taps, outs + m, c, end, out.activation, out.add);
            for (; m < b - a; m++)
                depthwise_rows<1>(conv, weights, rows + m * conv.taps, outs + m, c, end, out.activation, out.add);
        }
    });
}

// out = conv(before(in)) at `count` rows. `before` is applied to single-tap sources only.
inline void convolve(Session &s, const Conv &conv, Source in, const Target &out, int count,
                     const Pointwise *before = nullptr) {
    if (count <= 0) return;
    if (before && before->identity()) before = nullptr;
    if (conv.depthwise) return depthwise(s, conv, in, out, count);
    const double work = double(count) * conv.taps * conv.depth * padded(conv.out);
    const bool alone = s.team.size() == 1 || work < kSmall;
    const Cut parts = cut(conv.row + padded(conv.out), double(conv.taps) * conv.depth * padded(conv.out), conv.panels,
                          count, alone ? 1 : s.team.size());
    const int width = row_stride(conv.row), used = padded(conv.row);
    const float *all_weights = conv.weights();
    if (before && parts.groups > 1) { // every group would do it again
        float *rows = s.prepared.need(size_t(count) * width);
        over_rows(s, count, std::max(8, count / (4 * s.team.size())), double(count) * width < kSmall,
                  [&](int a, int b) {
                      for (int m = a; m < b; m++) before->row(in.row(m), rows + size_t(m) * width, used);
                  });
        in = Source{rows, size_t(width)};
        before = nullptr;
    }
    auto task = [&](int index, int thread) {
        const int group = index % parts.groups, piece = index / parts.groups; // a core keeps to its rows
        const int from = part(count, parts.chunks, piece), to = part(count, parts.chunks, piece + 1);
        if (from == to) return;
        const float *prepared = nullptr;
        if (before) {
            float *scratch = s.scratch[thread].need(size_t(to - from) * width);
            for (int m = from; m < to; m++) before->row(in.row(m), scratch + size_t(m - from) * width, used);
            prepared = scratch;
        }
        const int tiles = (to - from + kRows - 1) / kRows;
        const size_t panel_floats = size_t(kPanel) * conv.taps * conv.depth, panel_bytes = sizeof(float) * panel_floats;
        const float *rows[kRows * kMaxTaps];
        float *outs[kRows];
        const int first = part(conv.panels, parts.groups, group), last = part(conv.panels, parts.groups, group + 1);
        for (int panel = first; panel < last; panel++) {
            const int start = conv.start(panel);
            for (int i = 0; i < tiles; i++) {
                const int m0 = from + part(to - from, tiles, i), m1 = from + part(to - from, tiles, i + 1);
                const float **row = rows;
                for (int m = m0; m < m1; m++) {
                    outs[m - m0] = out.base + size_t(out.rows ? out.rows[m] : m) * out.stride + panel * kPanel;
                    if (prepared) {
                        *row++ = prepared + size_t(m - from) * width + start;
                    } else if (in.map) {
                        const int32_t *map = in.map + in.cells[m];
                        for (int t = 0; t < conv.taps; t++)
                            *row++ = in.base + size_t(map[in.offsets[t]]) * in.stride + start;
                    } else if (in.cells) {
                        for (int t = 0; t < conv.taps; t++)
                            *row++ = in.base + size_t(in.cells[m] + in.offsets[t]) * in.stride + start;
                    } else {
                        *row++ = in.row(m) + start;
                    }
                }
                const float *weights = all_weights + panel * panel_floats;
                multiply(Tile{rows, conv.taps, conv.depth, weights, &conv.bias[panel * kPanel], outs, out.add, out.activation,
                              reinterpret_cast<const char *>(weights + panel_floats) + i * (panel_bytes / tiles),
                              sizeof(float) * kPanel / tiles},
                         m1 - m0, conv.vectors(panel));
            }
        }
    };
    share_out(s, parts.chunks * parts.groups, alone, task);
}

// How far side x side cells lie from one, where the first is (top, left) above it.
inline void square_offsets(int side, int top, int left, int pitch, int32_t *offsets) {
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) *offsets++ = (y - top) * pitch + x - left;
}

} // namespace sact
