// Algorithm 1 in a block: its first unit everywhere, the others where positions are active, the halting between them.
#pragma once
#include <algorithm>

#include "model.h"
#include "winograd.h"

namespace sact {

// One block's run: halting, position by position or image by image, as in halting.step.
class BlockRun {
  public:
    // `result` is that of all images, of which those from `first` on are run.
    BlockRun(Session &s, const Block &block, Grid in, const SactBlockResult &result, int first)
        : s_(s), block_(block), units_(block.units), in_(in), result_(result), first_(first) {}

    // From state rows [positions of `in`, channels] to the block's output; returns its grid.
    Grid operator()(float *x, size_t stride, float **output) {
        first_unit(x, stride);
        find_results();
        if (block_.halting == SACT_NONE) {
            if (units_.size() > 1) start_sites();
            for (size_t u = 1; u < units_.size(); u++) branch(*units_[u]);
            *output = state_;
            return out_;
        }
        start();
        for (size_t u = 0; u < units_.size(); u++) {
            if (s_.sites.active().empty()) break;
            if (u) branch(*units_[u]);
            halt(*units_[u], int(u));
        }
        const int elements = block_.halting == SACT_IMAGES ? out_.n : out_.positions();
        const float *remainder = s_.remainder.data();
        for (int i = 0; i < elements; i++) {
            if (result_.units) result_.units[i] = s_.units[i];
            if (result_.cost) result_.cost[i] = float(s_.units[i]) + remainder[i];
        }
        *output = block_.halted ? state_ : s_.output.data();
        return out_;
    }

  private:
    Session &s_;
    const Block &block_;
    const std::vector<std::unique_ptr<Unit>> &units_;
    Grid in_, out_;
    SactBlockResult result_;
    const int first_;
    float *state_ = nullptr;
    size_t stride_ = 0, width_ = 0; // floats from row to row of the state, and of a row

    // The first unit: everywhere, perhaps with a stride. Without stages its state may take the input's place.
    void first_unit(float *x, size_t stride) {
        const Unit &unit = *units_[0];
        Grid grid = in_;
        const float *input = x;
        size_t in_stride = stride;
        const Pointwise none, &preact = unit.stages.empty() ? none : unit.stages[0]->before;
        const bool wide_first = !unit.stages.empty() && unit.stages[0]->conv.kernel > 1;
        const bool keep_preact =
            !preact.identity() && (wide_first || (unit.preactivated && unit.shortcut != SACT_CONVOLUTION));
        const float *preactivated = x;
        if (keep_preact) {
            float *rows = s_.rows[2].need(size_t(grid.positions() + 1) * stride);
            pointwise(preact, x, rows, grid.positions(), stride, padded(unit.stages[0]->conv.in));
            preactivated = rows;
        }
        Grid out = grid;
        for (const auto &stage : unit.stages) {
            out.height = stage->conv.result(out.height);
            out.width = stage->conv.result(out.width);
        }
        out_ = out;
        for (const auto &each : units_)
            for (const auto &stage : each->stages) out_.margin = std::max(out_.margin, stage->conv.kernel / 2);
        out_.margin = std::max(out_.margin, 1); // for the scores
        width_ = padded(unit.channels);
        stride_ = row_stride(unit.channels);
        if (unit.stages.empty() && (x == s_.state[0].data() || x == s_.state[1].data())) {
            state_ = x;
        } else { // other states and inputs may not share a buffer
            Buffer &buffer = s_.state[x == s_.state[0].data()];
            state_ = buffer.need(size_t(out.positions() + 1) * stride_);
            if (unit.stages.empty() || unit.shortcut != SACT_NO_SHORTCUT)
                shortcut(unit, keep_preact ? preactivated : x, keep_preact, in_stride, x);
        }
        zero_row(state_, out.positions(), stride_);
        int which = 0;
        for (size_t i = 0; i < unit.stages.size(); i++) {
            const Stage &stage = *unit.stages[i];
            const bool last = i + 1 == unit.stages.size();
            const Conv &conv = stage.conv;
            Grid to = grid;
            to.height = conv.result(grid.height);
            to.width = conv.result(grid.width);
            Target target;
            if (last)
                target = {state_, stride_, nullptr, unit.shortcut != SACT_NO_SHORTCUT, fused(unit.after)};
            else {
                const size_t width = row_stride(conv.out);
                float *rows = s_.rows[which].need(size_t(to.positions() + 1) * width);
                target = {rows, width, nullptr, false, fused(unit.stages[i + 1]->before)};
            }
            Source source{i == 0 ? preactivated : input, in_stride};
            const Pointwise *before = !keep_preact || i ? unfused(unit, int(i)) : nullptr;
            int32_t offsets[kMaxTaps];
            if (conv.kernel > 1) zero_row(const_cast<float *>(source.base), grid.positions(), in_stride);
            read_all(conv, grid, to, &source, offsets);
            const Index *outputs = conv.products ? &s_.layouts.of(with_margin(to, 1)).tiles.outputs : nullptr;
            if (outputs && tiles_pay(conv, to.positions(), int(outputs->size() / 4))) {
                s_.tile_cells.resize(outputs->size() / 4);
                for (size_t m = 0; m < s_.tile_cells.size(); m++)
                    s_.tile_cells[m] = source.cells[(*outputs)[4 * m]];
                source.cells = s_.tile_cells.data();
                square_offsets(conv.side, conv.before(grid.height), conv.before(grid.width), around(grid, conv).pitch(),
                               offsets);
                convolve_tiles(s_, conv, source, target, *outputs);
            } else {
                convolve(s_, conv, source, target, to.positions(), before);
            }
            input = target.base;
            in_stride = target.stride;
            grid = to;
            which ^= 1;
        }
        if (unit.stages.empty() ? !unit.after.identity() : unit.after.has_norm())
            pointwise(unit.after, state_, state_, out.positions(), stride_, int(width_));
    }

    // Layers as they are applied to what a convolution writes; those with a norm are applied to what is read.
    static Activation fused(const Pointwise &layers) { return layers.has_norm() ? Activation() : layers.activation; }
    // The layers to apply to what stage i reads.
    static const Pointwise *unfused(const Unit &unit, int i) {
        const Pointwise &before = unit.stages[i]->before;
        return i == 0 || before.has_norm() ? &before : nullptr;
    }

    // Let the results begin at the first image of this run.
    void find_results() {
        const size_t elements = size_t(first_) * (block_.halting == SACT_IMAGES ? 1 : out_.area());
        if (result_.units) result_.units += elements;
        if (result_.cost) result_.cost += elements;
        if (result_.distribution) result_.distribution += elements * units_.size();
        if (result_.forced) result_.forced += elements;
    }

    static void zero_row(float *rows, int index, size_t stride) {
        std::fill(rows + size_t(index) * stride, rows + size_t(index + 1) * stride, 0.0f);
    }

    void pointwise(const Pointwise &layers, const float *from, float *to, int count, size_t stride, int width) {
        over_rows(s_, count, 64, double(count) * stride < kSmall, [&](int a, int b) {
            for (int m = a; m < b; m++)
                layers.row(from + m * stride, to + m * stride, width);
        });
    }

    // A grid with as much margin as a convolution of it needs; tiles with a stride read a line more.
    static Grid around(const Grid &grid, const Conv &conv) {
        return with_margin(grid, conv.kernel / 2 + (conv.products && conv.stride > 1));
    }
    static Grid with_margin(Grid grid, int margin) {
        grid.margin = margin;
        return grid;
    }

    // What a dense convolution of `from` reads: neighbours for k x k, every stride-th row for 1x1.
    void read_all(const Conv &conv, Grid from, const Grid &to, Source *source, int32_t *offsets) {
        const int stride = conv.stride;
        if (conv.kernel == 1 && stride == 1) return;
        from = around(from, conv);
        const Layout &layout = s_.layouts.of(from);
        if (stride > 1) {
            s_.cells.resize(to.positions());
            int m = 0;
            for (int n = 0; n < to.n; n++)
                for (int y = 0; y < to.height; y++)
                    for (int x = 0; x < to.width; x++) s_.cells[m++] = from.cell(n, y * stride, x * stride);
        }
        source->cells = stride > 1 ? s_.cells.data() : layout.cells.data();
        source->map = layout.map.data();
        source->offsets = offsets;
        square_offsets(conv.kernel, conv.before(from.height), conv.before(from.width), from.pitch(), offsets);
    }

    // Put the first unit's shortcut where its state will be.
    void shortcut(const Unit &unit, const float *rows, bool is_preactivated, size_t stride, const float *raw) {
        const float *source = unit.preactivated ? rows : raw;
        if (unit.shortcut == SACT_CONVOLUTION) {
            Source in{source, stride};
            int32_t offsets[kMaxTaps];
            read_all(*unit.projection, in_, out_, &in, offsets);
            const Pointwise *before = unit.preactivated && !is_preactivated ? &unit.stages[0]->before : nullptr;
            convolve(s_, *unit.projection, in, {state_, stride_}, out_.positions(), before);
            return;
        }
        const int step = unit.stride;
        const bool average = unit.shortcut == SACT_POOL_PAD && step > 1;
        const int in_channels = unit.stages.empty() ? unit.channels : unit.stages[0]->conv.in;
        over_rows(s_, out_.positions(), 64, double(out_.positions()) * stride_ < kSmall, [&](int a, int b) {
            for (int m = a; m < b; m++) {
                const int n = m / out_.area(), y = m % out_.area() / out_.width * step, x = m % out_.width * step;
                float *to = state_ + size_t(m) * stride_;
                if (unit.shortcut != SACT_POOL_PAD) {
                    const float *from = source + (size_t(n * in_.height + y) * in_.width + x) * stride;
                    std::copy(from, from + width_, to);
                    continue;
                }
                std::fill(to, to + width_, 0.0f);
                float *put = to + unit.before;
                const int y1 = average ? std::min(y + step, in_.height) : y + 1;
                const int x1 = average ? std::min(x + step, in_.width) : x + 1;
                for (int v = y; v < y1; v++)
                    for (int w = x; w < x1; w++) {
                        const float *from = source + (size_t(n * in_.height + v) * in_.width + w) * stride;
                        for (int c = 0; c < in_channels; c++) put[c] += from[c];
                    }
                if (average) {
                    const float share = 1.0f / float((y1 - y) * (x1 - x));
                    for (int c = 0; c < in_channels; c++) put[c] *= share;
                }
            }
        });
    }

    void start_sites() { s_.sites.start(s_.layouts.of(out_)); }

    // A unit's branch at the active positions, added to the state there.
    void branch(const Unit &unit) {
        Sites &sites = s_.sites;
        const int stages = int(unit.stages.size());
        int reach = 0; // of the branch's input
        for (const auto &stage : unit.stages) reach += stage->conv.kernel / 2;
        const Pointwise *before = &unit.stages[0]->before;
        const float *input = state_;
        size_t in_stride = stride_;
        const bool wide_first = unit.stages[0]->conv.kernel > 1;
        // A convolution may read around a position in the state itself, unless it also writes there.
        const bool from_state = wide_first && before->identity() && stages > 1;
        if (wide_first && !from_state) { // every input is read by several outputs: pre-activate it once
            const Index &rows = sites.rows(reach);
            float *to = s_.rows[2].need((rows.size() + 1) * stride_);
            over_rows(s_, int(rows.size()), 64, double(rows.size()) * width_ < kSmall, [&](int a, int b) {
                for (int m = a; m < b; m++)
                    before->row(state_ + size_t(rows[m]) * stride_, to + size_t(m) * stride_, int(width_));
            });
            input = to;
            before = nullptr;
        }
        for (int i = 0; i < stages; i++) {
            const Conv &conv = unit.stages[i]->conv;
            const int in_reach = reach;
            reach -= conv.kernel / 2;
            const Index &rows = sites.rows(reach);
            Target target{state_, stride_, rows.data(), true, unit.after.activation};
            if (i + 1 < stages) {
                const size_t width = row_stride(conv.out);
                float *to = s_.rows[i % 2].need((rows.size() + 1) * width);
                target = {to, width, nullptr, false, fused(unit.stages[i + 1]->before)};
            }
            Source source{input, in_stride};
            int32_t offsets[kMaxTaps];
            if (conv.kernel > 1) {
                const bool is_whole = i == 0 && from_state;
                if (!is_whole) zero_row(const_cast<float *>(input), int(sites.rows(in_reach).size()), in_stride);
                square_offsets(conv.kernel, conv.kernel / 2, conv.kernel / 2, out_.pitch(), offsets);
                source.cells = sites.cells(reach).data();
                source.map = is_whole ? sites.all().map.data() : sites.map(in_reach).data();
                source.offsets = offsets;
            } else if (i == 0) {
                source.rows = rows.data();
            }
            const Tiles *tiles = conv.products ? &sites.tiles(reach) : nullptr;
            if (tiles && tiles_pay(conv, int(rows.size()), int(tiles->cells.size()))) {
                square_offsets(conv.side, 1, 1, out_.pitch(), offsets);
                source.cells = tiles->cells.data();
                convolve_tiles(s_, conv, source, target, tiles->outputs);
            } else {
                convolve(s_, conv, source, target, int(rows.size()), i == 0 ? before : unfused(unit, i));
            }
            input = target.base;
            in_stride = target.stride;
        }
    }

    // Everything is active and nothing has been spent.
    void start() {
        const int elements = block_.halting == SACT_IMAGES ? out_.n : out_.positions();
        std::fill_n(s_.cumulative.need(elements), elements, 0.0f);
        std::fill_n(s_.remainder.need(elements), elements, 1.0f);
        s_.units.assign(elements, 0);
        std::fill_n(s_.frozen.need(size_t(out_.n) * stride_), size_t(out_.n) * stride_, 0.0f);
        start_sites();
    }

    // Means of the channels over each image: of the rows that have halted, summed up already, and of the active ones.
    void means() {
        float *mean = s_.mean.need(size_t(out_.n) * stride_);
        std::copy_n(s_.frozen.data(), size_t(out_.n) * stride_, mean);
        add_up(s_.sites.active(), mean);
        const float share = 1.0f / float(out_.area());
        for (size_t i = 0; i < size_t(out_.n) * stride_; i++) mean[i] *= share;
    }

    // Add rows of the state to sums of their images, in pieces: they are shared out, and one long sum would be imprecise.
    void add_up(const Index &rows, float *totals) {
        const int count = int(rows.size()), piece = std::max(64, out_.width);
        // A piece may hold the end of one image and the start of the next: cut pieces at images.
        starts_.clear();
        for (int m = 0; m < count;) {
            const int image = rows[m] / out_.area();
            int end = std::min(count, m + piece);
            if (rows[end - 1] / out_.area() != image)
                end = int(std::lower_bound(rows.begin() + m, rows.begin() + end, (image + 1) * out_.area()) -
                          rows.begin());
            starts_.push_back(m);
            m = end;
        }
        const int parts = int(starts_.size());
        float *sums = s_.sums.need(size_t(parts) * stride_);
        auto add = [&](int i, int) {
            const int end = i + 1 < parts ? starts_[i + 1] : count;
            float *to = sums + size_t(i) * stride_;
            std::copy_n(state_ + size_t(rows[starts_[i]]) * stride_, width_, to);
            for (int m = starts_[i] + 1; m < end; m++) {
                const float *from = state_ + size_t(rows[m]) * stride_;
                for (size_t c = 0; c < width_; c += kWidth) store(to + c, load(to + c) + load(from + c));
            }
        };
        share_out(s_, parts, double(count) * stride_ < kSmall, add);
        for (int i = 0; i < parts; i++) {
            float *to = totals + size_t(rows[starts_[i]] / out_.area()) * stride_;
            for (size_t c = 0; c < width_; c += kWidth)
                store(to + c, load(to + c) + load(sums + size_t(i) * stride_ + c));
        }
    }
    Index starts_, halted_;

    // One turn of Algorithm 1 behind unit u: scores, weights, and who goes on.
    void halt(const Unit &unit, int u) {
        const Index &active = s_.sites.active();
        const int area = out_.area(), count = int(active.size());
        const bool images = block_.halting == SACT_IMAGES;
        const Score *score = unit.score.get();
        // The next block may put zeros behind the output.
        float *output = block_.halted ? nullptr : s_.output.need(size_t(out_.positions() + 1) * stride_);
        s_.goes_on.resize(count);
        if (score) {
            means();
            global_terms(*score);
            if (score->local) prepare_scores(*score);
        }
        const float *global = s_.global.data();
        if (images) {
            weights_.assign(out_.n, 0.0f);
            on_.assign(out_.n, 0);
            for (int m = 0; m < count; m = next_image(m)) {
                const int image = active[m] / area;
                float h[kWidth] = {score ? global[image] : 0.0f};
                sigmoid(h, 1);
                bool on;
                weights_[image] = turn(image, h[0], u, score != nullptr, &on);
                on_[image] = on;
            }
        }
        constexpr int kPiece = 32;
        auto work = [&](int a, int b) {
            float h[kPiece] = {};
            if (!images && score) score_rows(*score, a, b, h);
            for (int m = a; m < b; m++) {
                const int row = active[m];
                float weight;
                if (images) {
                    weight = weights_[row / area];
                    s_.goes_on[m] = on_[row / area];
                } else {
                    bool on;
                    weight = turn(row, h[m - a], u, score != nullptr, &on);
                    s_.goes_on[m] = on;
                }
                if (!output) continue;
                const float *x = state_ + size_t(row) * stride_;
                float *to = output + size_t(row) * stride_;
                if (u == 0)
                    for (size_t c = 0; c < width_; c += kWidth) store(to + c, weight * load(x + c));
                else
                    for (size_t c = 0; c < width_; c += kWidth) store(to + c, load(to + c) + weight * load(x + c));
            }
        };
        over_rows(s_, count, kPiece, double(count) * (width_ * 20 + 400) < kSmall, work);
        if (!score) return;
        halted_.clear();
        for (int m = 0; m < count; m++)
            if (!s_.goes_on[m]) halted_.push_back(active[m]);
        add_up(halted_, s_.frozen.data());
        s_.sites.keep(s_.goes_on);
    }
    std::vector<float> weights_; // of images
    std::vector<uint8_t> on_;

    // The scores of active positions from the a-th to the b-th; `h` holds whole vectors.
    void score_rows(const Score &score, int a, int b, float *h) const {
        const Index &active = s_.sites.active();
        int image = -1, end = 0; // the image of this row, and the first row of the next
        for (int m = a; m < b;) {
            const int row = active[m];
            if (row >= end) {
                image = row / out_.area();
                end = (image + 1) * out_.area();
            }
            int beside = 1;
            if (m + kBeside <= b && active[m + kBeside - 1] == row + kBeside - 1 && inner_until(row, kBeside)) {
                local_inner<kBeside>(score, row, &h[m - a]);
                beside = kBeside;
            } else {
                h[m - a] = local(score, row);
            }
            for (const int last = m + beside; m < last; m++) h[m - a] += s_.global.data()[image];
        }
        sigmoid(h, b - a);
    }

    // In place; what is read and written is whole vectors.
    static void sigmoid(float *values, int count) {
        for (int i = 0; i < count; i += kWidth) store(values + i, 1.0f / (1.0f + exponential(-load(values + i))));
    }

    // What an element's score makes of its state, as halting.step; the weight p of this unit there.
    float turn(int element, float h, int u, bool scored, bool *goes_on) {
        float &cumulative = s_.cumulative.data()[element], &remainder = s_.remainder.data()[element];
        if (result_.forced) h = result_.forced[element] == u + 1 ? 1.0f : 0.0f;
        s_.units[element]++;
        float weight = remainder;
        *goes_on = false;
        if (scored) {
            cumulative += h;
            if (cumulative < block_.threshold) {
                *goes_on = true;
                weight = h;
                remainder -= h;
            }
        }
        if (result_.distribution) {
            const int each = block_.halting == SACT_IMAGES ? 1 : out_.area();
            const int image = element / each, at = element % each;
            result_.distribution[(size_t(image) * units_.size() + u) * each + at] = weight;
        }
        return weight;
    }

    // The first active row of the image behind that of row m of the active ones.
    int next_image(int m) const {
        const Index &active = s_.sites.active();
        const int end = (active[m] / out_.area() + 1) * out_.area();
        return int(std::lower_bound(active.begin() + m, active.end(), end) - active.begin());
    }

    // The global term of every image that has active positions.
    void global_terms(const Score &score) {
        const Index &active = s_.sites.active();
        float *global = s_.global.need(out_.n);
        for (int m = 0; m < int(active.size()); m = next_image(m)) {
            const int image = active[m] / out_.area();
            const float *mean = s_.mean.data() + size_t(image) * stride_;
            Vec total = {};
            for (size_t c = 0; c < width_; c += kWidth)
                total += score.global_before(mean, int(c)) * load(&score.global_weight[c]);
            global[image] = sum(total) + score.bias;
            if (result_.shift != 0.0f) global[image] += result_.shift;
        }
    }

    // What the scores' 3x3 convolutions read: the state, or where layers stand before them that are not in the weights,
    // what those make of it.
    void prepare_scores(const Score &score) {
        scored_ = state_;
        if (score.local_before.identity()) return;
        const Index &rows = s_.sites.rows(1);
        float *to = s_.activated.need(size_t(out_.positions() + 1) * stride_);
        over_rows(s_, int(rows.size()), 64, double(rows.size()) * width_ < kSmall, [&](int a, int b) {
            for (int m = a; m < b; m++)
                score.local_before.row(state_ + size_t(rows[m]) * stride_, to + size_t(rows[m]) * stride_, int(width_));
        });
        zero_row(to, out_.positions(), stride_);
        scored_ = to;
    }
    const float *scored_ = nullptr;

    static constexpr int kBeside = kWidth == 16 ? 4 : 2; // positions beside each other that share what they read

    // Whether `count` positions from `row` on lie in one line and have all their neighbours.
    bool inner_until(int row, int count) const {
        const uint8_t *inner = &s_.sites.all().inner[row];
        for (int i = 0; i < count; i++)
            if (!inner[i]) return false; // lines of inner positions never touch: their ends are borders
        return true;
    }

    // As `local`, to the bit, for N such positions.
    template <int N> void local_inner(const Score &score, int row, float *to) const {
        const float *from = scored_ + size_t(row) * stride_, *weight = score.local_weight.data();
        Vec sums[3][N] = {};
        for (size_t i = 0; i < width_; i += kWidth)
#pragma GCC unroll 3
            for (int y = 0; y < 3; y++) {
                const float *line = from + ((y - 1) * out_.width - 1) * ptrdiff_t(stride_) + i;
                Vec values[N + 2];
                for (int n = 0; n < N + 2; n++) values[n] = load(line + n * stride_);
#pragma GCC unroll 3
                for (int x = 0; x < 3; x++) {
                    const Vec w = load(weight + (3 * y + x) * width_ + i);
                    for (int n = 0; n < N; n++) sums[x][n] += values[n + x] * w;
                }
            }
        float constant = 0.0f;
        for (int t = 0; t < 9; t++) constant += score.local_constant[t];
        for (int n = 0; n < N; n++) to[n] = constant + sum(sums[0][n] + sums[1][n] + sums[2][n]);
    }

    // The local term of a score: a 3x3 convolution to one channel at one position.
    float local(const Score &score, int row) const {
        const Layout &all = s_.sites.all();
        const int32_t *map = all.map.data() + all.cells[row];
        const bool inner = all.inner[row];
        const float *from[9];
        float constant = 0.0f;
        for (int t = 0; t < 9; t++) {
            const int y = t / 3 - 1, x = t % 3 - 1;
            const int at = inner ? row + y * out_.width + x : map[y * out_.pitch() + x];
            from[t] = scored_ + size_t(at) * stride_;
            constant += at == out_.positions() ? 0.0f : score.local_constant[t];
        }
        const float *weight = score.local_weight.data();
        Vec a = {}, b = {}, c = {};
        for (size_t i = 0; i < width_; i += kWidth) {
#pragma GCC unroll 3
            for (int t = 0; t < 9; t += 3) {
                a += load(from[t] + i) * load(weight + t * width_ + i);
                b += load(from[t + 1] + i) * load(weight + (t + 1) * width_ + i);
                c += load(from[t + 2] + i) * load(weight + (t + 2) * width_ + i);
            }
        }
        return constant + sum(a + b + c);
    }
};

} // namespace sact
