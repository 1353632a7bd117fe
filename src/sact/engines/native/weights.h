// A network's weights in the layout in which the kernel reads them.
#pragma once
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel.h"
#include "memory.h"
#include "native.h"

namespace sact {

constexpr int kMaxTaps = 49;

inline int padded(int channels) { return (channels + kWidth - 1) / kWidth * kWidth; }

// Values padded with zeros to whole vectors.
inline std::vector<float> copy(const float *values, int count) {
    std::vector<float> result(padded(count), 0.0f);
    if (values) std::copy(values, values + count, result.begin());
    return result;
}

inline Activation as_activation(const SactActivation &from) { return {from.kind, from.slope, from.cap}; }

struct Pointwise {
    std::vector<float> scale, shift; // padded with zeros, so that padding channels stay zero
    float eps = 0.0f;                // of a layer norm
    int channels = 0;
    Activation activation;

    Pointwise() = default;
    Pointwise(const SactPointwise &from, int channels)
        : eps(from.eps), channels(channels), activation(as_activation(from.activation)) {
        if (from.scale) {
            scale = copy(from.scale, channels);
            shift = copy(from.shift, channels);
        }
    }
    bool has_norm() const { return !scale.empty(); }
    bool identity() const { return scale.empty() && activation.none(); }
    // `to` may be `from`; `count` is the channels in whole vectors.
    void row(const float *from, float *to, int count) const {
        if (eps > 0.0f) {
            normalise(from, to, count);
            from = to;
        }
        if (!scale.empty() && activation.kind == 0 && activation.slope == 0.0f) {
            for (int c = 0; c < count; c += kWidth) {
                Vec v = load(from + c) * load(&scale[c]) + load(&shift[c]);
                v = v > 0.0f ? v : Vec{};
                store(to + c, v > activation.cap ? Vec{} + activation.cap : v);
            }
            return;
        }
        for (int c = 0; c < count; c += kWidth) store(to + c, (*this)(from, c));
    }
    // Of one vector; not for layer norms.
    Vec operator()(const float *row, int c) const {
        Vec v = load(row + c);
        if (!scale.empty()) v = v * load(&scale[c]) + load(&shift[c]);
        return activation.none() ? v : activation(v);
    }

  private:
    void normalise(const float *from, float *to, int count) const {
        Vec total = {}, square = {};
        for (int c = 0; c < count; c += kWidth) total += load(from + c);
        const float mean = sum(total) / float(channels);
        for (int c = 0; c < count; c += kWidth) {
            const Vec centred = load(from + c) - mean;
            store(to + c, centred);
            square += centred * centred;
        }
        // Channels that only fill a vector were zero, and became -mean.
        const float excess = float(count - channels) * mean * mean;
        const float share = 1.0f / std::sqrt((sum(square) - excess) / float(channels) + eps);
        for (int c = 0; c < count; c += kWidth) store(to + c, load(to + c) * share);
    }
};

struct Conv {
    int in, out, kernel, stride, pad, groups;
    bool same, depthwise;
    int taps, depth, row; // rows that an output reads, numbers it reads of each, and numbers in one
    int panels, last_vectors;
    int side = 0, products = 0; // of a tile of 2x2 outputs: inputs across, and products; 0 where tiles cannot be used
    std::vector<float> bias;

    // `joined`: a tap is a whole kernel row of neighbouring positions, whose channels lie one behind the other.
    Conv(const SactConv &from, bool joined = false)
        : in(from.in), out(from.out), kernel(from.kernel), stride(from.stride), pad(from.pad), groups(from.groups),
          same(from.same != 0), depthwise(groups > 1 && groups == in && groups == out && has_depthwise(from.kernel)),
          taps(joined ? from.kernel : from.kernel * from.kernel), depth(joined ? from.kernel * from.in : from.in),
          row(depth), bias(copy(from.bias, from.out)) {
        const int width = padded(out);
        panels = (width + kPanel - 1) / kPanel;
        last_vectors = (width - (panels - 1) * kPanel) / kWidth;
        if (groups > 1) {
            depthwise ? pack_depthwise(from) : pack_groups(from);
            return;
        }
        if (kernel == 3 && stride <= 2 && (same || pad == 1) && !joined) {
            pack_tiles(from);
            return;
        }
        const size_t column = size_t(taps) * depth;
        float *to = weights_.need(column * width);
        for (int panel = 0; panel < panels; panel++) {
            const int columns = vectors(panel) * kWidth;
            for (size_t k = 0; k < column; k++)
                for (int j = 0; j < columns; j++, to++) {
                    const int o = panel * kPanel + j, tap = int(k) / in, c = int(k) % in;
                    *to = o < out ? from.weight[(size_t(o) * in + c) * kernel * kernel + tap] : 0.0f;
                }
        }
    }
    // Of the weights as they were packed.
    size_t bytes() const { return products ? tile_weights_.bytes() : weights_.bytes(); }
    int vectors(int panel) const { return panel + 1 < panels ? 2 : last_vectors; }
    // The first channel that a panel of outputs reads.
    int start(int panel) const { return starts_.empty() ? 0 : starts_[panel]; }
    // [panels, taps, depth, columns], depthwise [taps, row]; made of the tiles' weights when they are first wanted, since few runs want both.
    // With stride 1 the middle taps are then differences of rounded sums: right to rounding of the largest tap.
    const float *weights() const {
        if (!products) return weights_.data();
        std::lock_guard<std::mutex> lock(mutex_);
        if (!weights_.data()) unpack_tiles();
        return weights_.data();
    }
    const float *tile_weights() const { return tile_weights_.data(); } // [panels, products, depth, columns]
    int before(int size) const {
        if (!same) return pad;
        return std::max(((size + stride - 1) / stride - 1) * stride + kernel - size, 0) / 2;
    }
    int result(int size) const {
        return same ? (size + stride - 1) / stride : (size + 2 * pad - kernel) / stride + 1;
    }

  private:
    mutable std::mutex mutex_;
    mutable Buffer weights_;
    Buffer tile_weights_;
    std::vector<int> starts_; // by panel, with groups

    static bool has_depthwise(int kernel) { return kernel == 3 || kernel == 5 || kernel == 7; }
    void pack_depthwise(const SactConv &from) {
        row = padded(out);
        float *to = weights_.need(size_t(taps) * row);
        for (int t = 0; t < taps; t++)
            for (int c = 0; c < row; c++) *to++ = c < out ? from.weight[size_t(c) * taps + t] : 0.0f;
    }
    // Groups are narrow: a panel of outputs reads the channels of all its groups, with zeros for those of the others.
    void pack_groups(const SactConv &from) {
        const int each_in = in / groups, each_out = out / groups;
        depth = 0;
        for (int panel = 0; panel < panels; panel++) {
            const int last = std::min((panel + 1) * kPanel, out) - 1, start = panel * kPanel / each_out * each_in;
            starts_.push_back(start);
            depth = std::max(depth, (last / each_out + 1) * each_in - start);
        }
        for (int &start : starts_) start = std::min(start, in - depth);
        float *to = weights_.need(size_t(taps) * depth * padded(out));
        for (int panel = 0; panel < panels; panel++)
            for (int t = 0; t < taps; t++)
                for (int k = 0; k < depth; k++)
                    for (int j = 0; j < vectors(panel) * kWidth; j++, to++) {
                        const int o = panel * kPanel + j, c = starts_[panel] + k - o / each_out * each_in;
                        *to = o < out && c >= 0 && c < each_in ? from.weight[(size_t(o) * each_in + c) * taps + t] : 0.0f;
                    }
    }
    // The factors G g G^T of every kernel g: per panel those of the first product, of the second ...
    void pack_tiles(const SactConv &from) {
        side = stride + 3;
        products = side * side;
        const size_t count = size_t(products) * depth * padded(out);
        float *base = tile_weights_.need(count);
        std::fill_n(base, count, 0.0f);
        for (int o = 0; o < out; o++) {
            const int panel = o / kPanel, columns = vectors(panel) * kWidth;
            float *to = base + size_t(panel) * kPanel * products * depth + o % kPanel;
            for (int c = 0; c < in; c++, to += columns) {
                const float *g = from.weight + (size_t(o) * in + c) * 9;
                double across[3][5], factors[5];
                for (int y = 0; y < 3; y++) kernel_factors(g[3 * y], g[3 * y + 1], g[3 * y + 2], across[y]);
                for (int x = 0; x < side; x++) {
                    kernel_factors(across[0][x], across[1][x], across[2][x], factors);
                    for (int y = 0; y < side; y++) to[size_t(side * y + x) * depth * columns] = float(factors[y]);
                }
            }
        }
    }
    void kernel_factors(double a, double b, double c, double *to) const {
        const double one[4] = {a, (a + b + c) / 2, (a - b + c) / 2, c}, two[5] = {a, a + c, c, b, b};
        std::copy_n(stride == 1 ? one : two, side, to);
    }
    void unpack_tiles() const {
        const size_t matrix = size_t(depth) * kPanel;
        float *to = weights_.need(size_t(taps) * depth * padded(out));
        for (int panel = 0; panel < panels; panel++) {
            const float *from = tile_weights_.data() + panel * products * matrix;
            const size_t each = size_t(depth) * vectors(panel) * kWidth;
            for (size_t i = 0; i < each; i++) {
                float factors[5] = {}, across[5][3] = {}, kernel[3];
                for (int y = 0; y < side; y++) {
                    for (int x = 0; x < side; x++) factors[x] = from[(side * y + x) * each + i];
                    kernel_of(factors, across[y]);
                }
                for (int x = 0; x < 3; x++) {
                    for (int y = 0; y < side; y++) factors[y] = across[y][x];
                    kernel_of(factors, kernel);
                    for (int y = 0; y < 3; y++) to[(panel * taps * matrix) + (3 * y + x) * each + i] = kernel[y];
                }
            }
        }
    }
    void kernel_of(const float *factors, float *to) const {
        to[0] = factors[0];
        to[1] = stride == 1 ? factors[1] - factors[2] : factors[3];
        to[2] = stride == 1 ? factors[3] : factors[2];
    }
};

struct Stage {
    Pointwise before;
    Conv conv;
    explicit Stage(const SactStage &from) : before(from.before, from.conv.in), conv(from.conv) {}
};

struct Score {
    bool local;
    Pointwise local_before, global_before;
    std::vector<float> local_weight, global_weight; // [9, channels], [channels]
    float local_constant[9] = {};                   // what each tap adds where it lies inside the picture
    float bias;

    Score(const SactScore &from, int channels)
        : local(from.local_weight != nullptr), local_before(from.local_before, channels),
          global_before(from.global_before, channels), global_weight(copy(from.global_weight, channels)),
          bias(from.bias) {
        if (!local) return;
        const int width = padded(channels);
        local_weight.assign(9 * width, 0.0f);
        for (int t = 0; t < 9; t++)
            for (int c = 0; c < channels; c++) local_weight[t * width + c] = from.local_weight[c * 9 + t];
        if (!local_before.activation.none() || local_before.scale.empty()) return;
        // A norm alone goes into the weights; its shift counts for taps inside the picture only.
        for (int t = 0; t < 9; t++)
            for (int c = 0; c < channels; c++) {
                local_constant[t] += local_weight[t * width + c] * local_before.shift[c];
                local_weight[t * width + c] *= local_before.scale[c];
            }
        local_before = Pointwise();
    }
};

struct Unit {
    std::vector<std::unique_ptr<Stage>> stages;
    int channels, shortcut, stride, before;
    bool preactivated;
    std::unique_ptr<Conv> projection;
    Pointwise after;
    std::unique_ptr<Score> score;

    explicit Unit(const SactUnit &from)
        : channels(from.channels), shortcut(from.shortcut), stride(from.stride), before(from.before),
          preactivated(from.preactivated != 0), after(from.after, from.channels) {
        for (int i = 0; i < from.n_stages; i++) stages.push_back(std::make_unique<Stage>(from.stages[i]));
        if (shortcut == SACT_CONVOLUTION) projection = std::make_unique<Conv>(*from.projection);
        if (from.score) score = std::make_unique<Score>(*from.score, channels);
    }
    size_t bytes() const {
        size_t total = projection ? projection->bytes() : 0;
        for (const auto &stage : stages) total += stage->conv.bytes();
        return total;
    }
};

} // namespace sact
