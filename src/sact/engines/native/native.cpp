// A network run at its active positions. States are rows of channels, one row per position of the batch; a convolution
// reads its input rows through pointers, so nothing is gathered and a 3x3 is a 1x1 with nine pointers.
#include "native.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>

#include "kernel.h"
#include "team.h"

namespace sact {

constexpr size_t kL2 = 384 * 1024;  // bytes of rows that one task works through again for each panel of weights
constexpr int kMaxTaps = 49;
constexpr double kSmall = 40000;    // multiply-adds below which a step is not worth sharing out

constexpr size_t kHugePage = 2 << 20;

int padded(int channels) { return (channels + kWidth - 1) / kWidth * kWidth; }

// Floats from one row to the next: not a multiple of the distance at which addresses share a set of the first cache.
int row_stride(int channels) {
    const int width = padded(channels);
    return width % 512 ? width : width + 16;
}

// Floats on cache-line boundaries that grow and are never shrunk.
class Buffer {
  public:
    ~Buffer() { std::free(data_); }
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    float *need(size_t count) {
        if (count > size_) {
            std::free(data_);
            size_ = 0;
            const size_t page = count * sizeof(float) >= kHugePage / 2 ? kHugePage : 4096;
            const size_t bytes = (count * sizeof(float) + page - 1) / page * page;
            data_ = static_cast<float *>(std::aligned_alloc(page, bytes));
            if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
            if (page == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
            size_ = count;
        }
        return data_;
    }
    float *data() const { return data_; }
    size_t bytes() const { return size_ * sizeof(float); }

  private:
    float *data_ = nullptr;
    size_t size_ = 0;
};

// ------------------------------------------------------------------------------------------------ packed weights

std::vector<float> copy(const float *values, int count) {
    std::vector<float> result(padded(count), 0.0f);
    if (values) std::copy(values, values + count, result.begin());
    return result;
}

struct Pointwise {
    std::vector<float> scale, shift; // padded with zeros, so that padding channels stay zero
    float slope = 1.0f;

    Pointwise() = default;
    Pointwise(const SactPointwise &from, int channels) : slope(from.slope) {
        if (from.scale) {
            scale = copy(from.scale, channels);
            shift = copy(from.shift, channels);
        }
    }
    bool identity() const { return scale.empty() && slope == 1.0f; }
    void row(const float *from, float *to, int count) const {
        if (!scale.empty() && slope == 0.0f) {
            for (int c = 0; c < count; c += kWidth) {
                const Vec v = load(from + c) * load(&scale[c]) + load(&shift[c]);
                store(to + c, v > 0.0f ? v : Vec{});
            }
            return;
        }
        for (int c = 0; c < count; c += kWidth) store(to + c, (*this)(from, c));
    }
    Vec operator()(const float *row, int c) const {
        Vec v = load(row + c);
        if (!scale.empty()) v = v * load(&scale[c]) + load(&shift[c]);
        return slope == 1.0f ? v : activate(v, slope);
    }
};

struct Conv {
    int in, out, kernel, stride, pad;
    bool same;
    int taps, depth; // rows that an output reads, and numbers it reads of each
    int panels, last_vectors;
    Buffer weights;
    std::vector<float> bias;

    // `joined`: a tap is a whole kernel row of neighbouring positions, whose channels lie one behind the other.
    Conv(const SactConv &from, bool joined = false)
        : in(from.in), out(from.out), kernel(from.kernel), stride(from.stride), pad(from.pad), same(from.same != 0),
          taps(joined ? from.kernel : from.kernel * from.kernel), depth(joined ? from.kernel * from.in : from.in),
          bias(copy(from.bias, from.out)) {
        const int width = padded(out);
        panels = (width + kPanel - 1) / kPanel;
        last_vectors = (width - (panels - 1) * kPanel) / kWidth;
        const size_t column = size_t(taps) * depth;
        float *to = weights.need(column * width);
        for (int panel = 0; panel < panels; panel++) {
            const int columns = vectors(panel) * kWidth;
            for (size_t k = 0; k < column; k++)
                for (int j = 0; j < columns; j++, to++) {
                    const int o = panel * kPanel + j, tap = int(k) / in, c = int(k) % in;
                    *to = o < out ? from.weight[(size_t(o) * in + c) * kernel * kernel + tap] : 0.0f;
                }
        }
    }
    int vectors(int panel) const { return panel + 1 < panels ? 2 : last_vectors; }
    const float *panel(int index) const { return weights.data() + size_t(index) * kPanel * taps * depth; }
    int before(int size) const {
        if (!same) return pad;
        return std::max(((size + stride - 1) / stride - 1) * stride + kernel - size, 0) / 2;
    }
    int result(int size) const {
        return same ? (size + stride - 1) / stride : (size + 2 * pad - kernel) / stride + 1;
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
        if (local_before.slope != 1.0f || local_before.scale.empty()) return;
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
    int shortcut, stride, before;
    bool preactivated;
    std::unique_ptr<Conv> projection;
    std::unique_ptr<Score> score;

    explicit Unit(const SactUnit &from)
        : shortcut(from.shortcut), stride(from.stride), before(from.before), preactivated(from.preactivated != 0) {
        for (int i = 0; i < from.n_stages; i++) stages.push_back(std::make_unique<Stage>(from.stages[i]));
        if (shortcut == SACT_CONVOLUTION) projection = std::make_unique<Conv>(*from.projection);
        if (from.score) score = std::make_unique<Score>(*from.score, channels());
    }
    int channels() const { return stages.back()->conv.out; }
};

// ------------------------------------------------------------------------------------------------ working memory

// Positions of a batch of pictures, with `margin` positions around each picture that stand for zeros.
struct Grid {
    int n, height, width, margin;
    int area() const { return height * width; }
    int positions() const { return n * area(); }
    int pitch() const { return width + 2 * margin; }
    int cells() const { return n * (height + 2 * margin) * pitch(); }
    int cell(int image, int y, int x) const { return (image * (height + 2 * margin) + y + margin) * pitch() + x + margin; }
};

using Index = std::vector<int32_t>;

struct Session {
    explicit Session(int threads) : team(threads), process(getpid()), scratch(threads) {}
    Team team;
    pid_t process;
    std::vector<Buffer> scratch; // of each thread
    Buffer images, state[2], output, rows[3], prepared, sums, frozen, mean, small;
    Buffer cumulative, remainder;
    // Per reach: listed positions, their cells, and for each cell the row of a compact buffer that holds it.
    Index listed[8], map, cells, next, units, forced;
    std::vector<uint8_t> mask[2];
    int64_t bytes() const {
        int64_t total = 0;
        for (const Buffer *b : {&images, &state[0], &state[1], &output, &rows[0], &rows[1], &rows[2], &prepared, &sums, &frozen,
                                &mean, &small, &cumulative, &remainder})
            total += int64_t(b->bytes());
        for (const Buffer &b : scratch) total += int64_t(b.bytes());
        for (const Index &i : listed) total += int64_t(i.capacity() * 4);
        for (const Index *i : {&map, &cells, &next, &units, &forced}) total += int64_t(i->capacity() * 4);
        return total + int64_t(mask[0].capacity() + mask[1].capacity());
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
};

struct Target {
    float *base;
    size_t stride;
    const int32_t *rows = nullptr; // null: row m
    bool add = false;
    float slope = 1.0f;
};

// Ranges of about equal length.
int part(int total, int parts, int index) { return int(int64_t(total) * index / parts); }

// Share `count` rows out in pieces of a fixed length.
template <class Work> void over_rows(Session &s, int count, int piece, bool alone, const Work &work) {
    const int tasks = (count + piece - 1) / piece;
    auto task = [&](int i, int) { work(i * piece, std::min(count, (i + 1) * piece)); };
    if (alone)
        for (int i = 0; i < tasks; i++) task(i, 0);
    else
        s.team.run(tasks, task);
}

// How a convolution is cut into tasks: chunks of rows times groups of panels.
struct Cut {
    int chunks = 1, groups = 1;
};

Cut cut(const Conv &conv, int count, int threads) {
    const double row_floats = conv.depth + padded(conv.out);
    const double weight_floats = double(conv.taps) * conv.depth * padded(conv.out);
    const int tiles = (count + kRows - 1) / kRows;
    Cut result;
    result.chunks = std::max(1, int(count * row_floats * sizeof(float) / kL2));
    if (threads == 1) return result;
    // Enough tasks for cores of unequal speed, none of them tiny; and what is larger is split first, rows or panels of
    // weights, so that each core reads its own part.
    const int wanted = std::max(1, std::min(8 * threads, int(count * weight_floats / kSmall)));
    const bool panels_first = weight_floats > count * row_floats;
    if (panels_first) result.groups = std::min(conv.panels, wanted);
    while (result.groups > 1 && conv.panels % result.groups) result.groups--;
    const int rest = (wanted + result.groups - 1) / result.groups;
    result.chunks = std::min(tiles, std::max(result.chunks, rest));
    if (result.chunks > threads) result.chunks -= result.chunks % threads; // the same rows for the same core
    if (!panels_first && result.chunks < threads) result.groups = std::min(conv.panels, wanted / result.chunks + 1);
    return result;
}

// out = conv(before(in)) at `count` rows. `before` is applied to single-tap sources only.
void convolve(Session &s, const Conv &conv, Source in, const Target &out, int count,
              const Pointwise *before = nullptr) {
    if (count <= 0) return;
    if (before && before->identity()) before = nullptr;
    const double work = double(count) * conv.taps * conv.depth * padded(conv.out);
    const bool alone = s.team.size() == 1 || work < kSmall;
    const Cut parts = cut(conv, count, alone ? 1 : s.team.size());
    const int tasks = parts.chunks * parts.groups;
    const int width = row_stride(conv.depth), used = padded(conv.depth);
    if (before && parts.groups > 1) { // every group would do it again
        float *rows = s.prepared.need(size_t(count) * width);
        over_rows(s, count, std::max(8, count / (4 * s.team.size())), double(count) * width < kSmall,
                  [&](int a, int b) {
                      for (int m = a; m < b; m++)
                          before->row(in.base + size_t(in.rows ? in.rows[m] : m) * in.stride, rows + size_t(m) * width,
                                      used);
                  });
        in = Source{rows, size_t(width)};
        before = nullptr;
    }
    auto task = [&](int index, int thread) {
        const int group = index / parts.chunks, piece = index % parts.chunks;
        const int from = part(count, parts.chunks, piece), to = part(count, parts.chunks, piece + 1);
        if (from == to) return;
        const float *prepared = nullptr;
        if (before) {
            float *scratch = s.scratch[thread].need(size_t(to - from) * width);
            for (int m = from; m < to; m++)
                before->row(in.base + size_t(in.rows ? in.rows[m] : m) * in.stride, scratch + size_t(m - from) * width,
                            used);
            prepared = scratch;
        }
        const int tiles = (to - from + kRows - 1) / kRows;
        const size_t panel_bytes = sizeof(float) * kPanel * conv.taps * conv.depth;
        const float *rows[kRows * kMaxTaps];
        float *outs[kRows];
        const int first = part(conv.panels, parts.groups, group), last = part(conv.panels, parts.groups, group + 1);
        for (int panel = first; panel < last; panel++) {
            for (int i = 0; i < tiles; i++) {
                const int m0 = from + part(to - from, tiles, i), m1 = from + part(to - from, tiles, i + 1);
                const float **row = rows;
                for (int m = m0; m < m1; m++) {
                    outs[m - m0] = out.base + size_t(out.rows ? out.rows[m] : m) * out.stride + panel * kPanel;
                    if (prepared) {
                        *row++ = prepared + size_t(m - from) * width;
                    } else if (in.map) {
                        const int32_t *map = in.map + in.cells[m];
                        for (int t = 0; t < conv.taps; t++) *row++ = in.base + size_t(map[in.offsets[t]]) * in.stride;
                    } else if (in.cells) {
                        for (int t = 0; t < conv.taps; t++)
                            *row++ = in.base + size_t(in.cells[m] + in.offsets[t]) * in.stride;
                    } else {
                        *row++ = in.base + size_t(in.rows ? in.rows[m] : m) * in.stride;
                    }
                }
                multiply(Tile{rows, conv.taps, conv.depth, conv.panel(panel), &conv.bias[panel * kPanel], outs,
                              out.add, out.slope,
                              reinterpret_cast<const char *>(conv.panel(panel + 1)) + i * (panel_bytes / tiles),
                              sizeof(float) * kPanel / tiles},
                         m1 - m0, conv.vectors(panel));
            }
        }
    };
    if (alone)
        for (int i = 0; i < tasks; i++) task(i, 0);
    else
        s.team.run(tasks, task);
}

// For a k x k convolution: how far each tap's cell lies from the output's.
void tap_offsets(const Conv &conv, int pitch, int32_t *offsets) {
    for (int y = 0; y < conv.kernel; y++)
        for (int x = 0; x < conv.kernel; x++) *offsets++ = y * pitch + x;
}

// ------------------------------------------------------------------------------------------------ the network

} // namespace sact

using namespace sact;

struct SactModel {
    int halting, stem_pool, pool_first, classes;
    float eps;
    std::unique_ptr<Conv> stem;
    std::vector<std::vector<std::unique_ptr<Unit>>> blocks;
    Pointwise before_classifier;
    std::unique_ptr<Conv> classifier;

    std::mutex mutex;
    std::vector<std::unique_ptr<Session>> idle;

    explicit SactModel(const SactNetwork &from)
        : halting(from.halting), stem_pool(from.stem_pool), pool_first(from.pool_first), classes(from.classes),
          eps(from.eps), stem(std::make_unique<Conv>(from.stem, true)) {
        for (int b = 0; b < from.n_blocks; b++) {
            blocks.emplace_back();
            for (int u = 0; u < from.blocks[b].n_units; u++)
                blocks.back().push_back(std::make_unique<Unit>(from.blocks[b].units[u]));
        }
        if (classes) {
            before_classifier = Pointwise(from.before_classifier, from.classifier.in);
            classifier = std::make_unique<Conv>(from.classifier);
        }
    }

    std::unique_ptr<Session> borrow(int threads) {
        std::lock_guard<std::mutex> lock(mutex);
        while (!idle.empty()) {
            std::unique_ptr<Session> session = std::move(idle.back());
            idle.pop_back();
            if (session->process != getpid()) {
                (void)session.release(); // its threads stayed in the parent process
                continue;
            }
            if (session->team.size() == threads) return session;
        }
        return std::make_unique<Session>(threads);
    }
    void give_back(std::unique_ptr<Session> session) {
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(session));
    }
};

namespace sact {

// One block's run: halting, position by position or image by image, as in halting.step.
class BlockRun {
  public:
    BlockRun(Session &s, const SactModel &model, const std::vector<std::unique_ptr<Unit>> &units, Grid in,
             const SactBlockResult &result)
        : s_(s), model_(model), units_(units), in_(in), result_(result) {}

    // From state rows [positions of `in`, channels] to the block's output; returns its grid.
    Grid operator()(const float *x, size_t stride, float **output) {
        first_unit(x, stride);
        const bool adaptive = model_.halting != SACT_NONE;
        const int area = out_.area();
        if (!adaptive) {
            for (size_t u = 1; u < units_.size(); u++) {
                if (u == 1) list_all();
                branch(*units_[u]);
            }
            *output = state_;
            return out_;
        }
        start();
        for (size_t u = 0; u < units_.size(); u++) {
            if (active_.empty()) break;
            if (u) branch(*units_[u]);
            halt(*units_[u], int(u));
        }
        const int elements = model_.halting == SACT_IMAGES ? out_.n : out_.positions();
        const float *remainder = s_.remainder.data();
        for (int i = 0; i < elements; i++) {
            if (result_.units) result_.units[i] = s_.units[i];
            if (result_.cost) result_.cost[i] = float(s_.units[i]) + remainder[i];
        }
        (void)area;
        *output = s_.output.data();
        return out_;
    }

  private:
    Session &s_;
    const SactModel &model_;
    const std::vector<std::unique_ptr<Unit>> &units_;
    Grid in_, out_;
    const SactBlockResult &result_;
    float *state_ = nullptr;
    size_t stride_ = 0, width_ = 0; // floats from row to row of the state, and of a row
    int channels_ = 0;
    Index active_; // rows of the state that the next unit changes, ascending

    // The first unit: everywhere, perhaps with a stride.
    void first_unit(const float *x, size_t stride) {
        const Unit &unit = *units_[0];
        Grid grid = in_;
        const float *input = x;
        size_t in_stride = stride;
        const Pointwise &preact = unit.stages[0]->before;
        const bool wide_first = unit.stages[0]->conv.kernel > 1;
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
        out.margin = 1;
        out_ = out;
        channels_ = unit.channels();
        width_ = padded(channels_);
        stride_ = row_stride(channels_);
        // The state and the input may not share a buffer.
        Buffer &buffer = s_.state[x == s_.state[0].data()];
        state_ = buffer.need(size_t(out.positions() + 1) * stride_);
        std::fill(state_ + size_t(out.positions()) * stride_, state_ + size_t(out.positions() + 1) * stride_, 0.0f);
        shortcut(unit, keep_preact ? preactivated : x, keep_preact, in_stride, x);
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
                target = {state_, stride_, nullptr, true, 1.0f};
            else {
                const size_t width = row_stride(conv.out);
                float *rows = s_.rows[which].need(size_t(to.positions() + 1) * width);
                target = {rows, width, nullptr, false, unit.stages[i + 1]->before.slope};
            }
            Source source{i == 0 ? preactivated : input, in_stride};
            const Pointwise *before = i == 0 && !keep_preact ? &preact : nullptr;
            int32_t offsets[64];
            if (conv.kernel > 1) {
                zero_row(const_cast<float *>(source.base), grid.positions(), in_stride);
                dense_map(conv, grid, to, offsets);
                source.cells = s_.cells.data();
                source.map = s_.map.data();
                source.offsets = offsets;
            } else if (conv.stride > 1) {
                strided_rows(conv.stride, grid, to);
                source.rows = s_.cells.data();
            }
            convolve(s_, conv, source, target, to.positions(), before);
            input = target.base;
            in_stride = target.stride;
            grid = to;
            which ^= 1;
        }
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

    // For a dense convolution: the map of all cells of `from`, and the first cell of every output.
    void dense_map(const Conv &conv, const Grid &from, const Grid &to, int32_t *offsets) {
        Grid grid = from;
        grid.margin = conv.kernel; // at least the padding on every side
        s_.map.assign(grid.cells(), from.positions());
        s_.cells.resize(to.positions());
        for (int n = 0, row = 0; n < from.n; n++)
            for (int y = 0; y < from.height; y++)
                for (int x = 0; x < from.width; x++) s_.map[grid.cell(n, y, x)] = row++;
        const int top = conv.before(from.height), left = conv.before(from.width);
        for (int n = 0, m = 0; n < to.n; n++)
            for (int y = 0; y < to.height; y++)
                for (int x = 0; x < to.width; x++)
                    s_.cells[m++] = grid.cell(n, y * conv.stride - top, x * conv.stride - left);
        tap_offsets(conv, grid.pitch(), offsets);
    }

    void strided_rows(int stride, const Grid &from, const Grid &to) {
        s_.cells.resize(to.positions());
        for (int n = 0, m = 0; n < to.n; n++)
            for (int y = 0; y < to.height; y++)
                for (int x = 0; x < to.width; x++)
                    s_.cells[m++] = (n * from.height + y * stride) * from.width + x * stride;
    }

    // Put the first unit's shortcut where its state will be.
    void shortcut(const Unit &unit, const float *rows, bool is_preactivated, size_t stride, const float *raw) {
        const float *source = unit.preactivated ? rows : raw;
        if (unit.shortcut == SACT_CONVOLUTION) {
            Source in{source, stride};
            strided_rows(unit.projection->stride, in_, out_);
            in.rows = s_.cells.data();
            const Pointwise *before = unit.preactivated && !is_preactivated ? &unit.stages[0]->before : nullptr;
            convolve(s_, *unit.projection, in, {state_, stride_}, out_.positions(), before);
            return;
        }
        const int step = unit.stride;
        const bool average = unit.shortcut == SACT_POOL_PAD && step > 1;
        const int in_channels = unit.stages[0]->conv.in;
        over_rows(s_, out_.positions(), 64, double(out_.positions()) * stride_ < kSmall, [&](int a, int b) {
            for (int m = a; m < b; m++) {
                const int n = m / out_.area(), y = m % out_.area() / out_.width * step, x = m % out_.width * step;
                float *to = state_ + size_t(m) * stride_;
                if (unit.shortcut == SACT_IDENTITY) {
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

    void list_all() {
        active_.resize(out_.positions());
        for (int i = 0; i < out_.positions(); i++) active_[i] = i;
        dilated_ = -1;
    }

    // A unit's branch at the active positions, added to the state there.
    void branch(const Unit &unit) {
        const int stages = int(unit.stages.size());
        int reach[16], total = 0;
        for (int i = stages - 1; i >= 0; i--) {
            reach[i] = total;
            total += unit.stages[i]->conv.kernel / 2;
        }
        list(total);
        const float *input = state_;
        size_t in_stride = stride_;
        int which = 0;
        const Pointwise *before = &unit.stages[0]->before;
        bool compact = false;
        if (unit.stages[0]->conv.kernel > 1) {
            const Index &rows = listed(total);
            float *to = s_.rows[2].need(size_t(rows.size() + 1) * stride_);
            over_rows(s_, int(rows.size()), 64, double(rows.size()) * stride_ < kSmall, [&](int a, int b) {
                for (int m = a; m < b; m++) {
                    const float *from = state_ + size_t(rows[m]) * stride_;
                    before->row(from, to + m * stride_, int(width_));
                }
            });
            input = to;
            before = nullptr;
            compact = true;
        }
        for (int i = 0; i < stages; i++) {
            const Conv &conv = unit.stages[i]->conv;
            const int at = reach[i], from = at + conv.kernel / 2;
            const Index &rows = listed(at);
            const bool last = i + 1 == stages;
            Target target;
            if (last)
                target = {state_, stride_, rows.data(), true, 1.0f};
            else {
                const size_t width = row_stride(conv.out);
                float *to = s_.rows[which].need(size_t(rows.size() + 1) * width);
                target = {to, width, nullptr, false, unit.stages[i + 1]->before.slope};
            }
            Source source{input, in_stride};
            int32_t offsets[64];
            if (conv.kernel > 1) {
                const Index &have = listed(from);
                zero_row(const_cast<float *>(input), int(have.size()), in_stride);
                Grid grid = out_;
                grid.margin = conv.kernel / 2;
                fill_map(grid, have);
                s_.cells.resize(rows.size());
                for (size_t m = 0; m < rows.size(); m++) {
                    const int n = rows[m] / out_.area(), p = rows[m] % out_.area();
                    s_.cells[m] = grid.cell(n, p / out_.width - conv.kernel / 2, p % out_.width - conv.kernel / 2);
                }
                tap_offsets(conv, grid.pitch(), offsets);
                source.cells = s_.cells.data();
                source.map = s_.map.data();
                source.offsets = offsets;
            } else if (!compact) {
                source.rows = rows.data();
            }
            convolve(s_, conv, source, target, int(rows.size()), i == 0 ? before : nullptr);
            input = target.base;
            in_stride = target.stride;
            compact = true;
            which ^= 1;
        }
    }

    // Which row of a compact buffer holds a cell; cells without one read the row of zeros behind the last.
    void fill_map(const Grid &grid, const Index &rows) {
        s_.map.assign(grid.cells(), int32_t(rows.size()));
        const int area = grid.area();
        for (size_t i = 0; i < rows.size(); i++) {
            const int n = rows[i] / area, p = rows[i] % area;
            s_.map[grid.cell(n, p / grid.width, p % grid.width)] = int32_t(i);
        }
    }

    int dilated_ = -1; // the greatest reach that is listed for the present active positions

    const Index &listed(int reach) const { return reach == 0 ? active_ : s_.listed[reach]; }

    // List the positions within 1 ... reach of an active one.
    void list(int reach) {
        if (int(active_.size()) == out_.positions()) {
            for (int r = dilated_ + 1; r <= reach; r++)
                if (r > 0) s_.listed[r] = active_;
            dilated_ = std::max(dilated_, reach);
            return;
        }
        if (dilated_ >= reach) return;
        const int height = out_.height + 2, width = out_.width + 2;
        std::vector<uint8_t> &mask = s_.mask[0], &wide = s_.mask[1];
        mask.assign(size_t(out_.n) * height * width, 0);
        wide.assign(mask.size(), 0);
        const Index *from = &active_;
        for (int r = 1; r <= reach; r++) {
            std::fill(mask.begin(), mask.end(), 0);
            for (int32_t row : *from) {
                const int n = row / out_.area(), p = row % out_.area();
                mask[(size_t(n) * height + p / out_.width + 1) * width + p % out_.width + 1] = 1;
            }
            for (size_t i = 1; i + 1 < mask.size(); i++) wide[i] = mask[i - 1] | mask[i] | mask[i + 1];
            Index &to = s_.listed[r];
            to.clear();
            for (int n = 0; n < out_.n; n++)
                for (int y = 0; y < out_.height; y++) {
                    const uint8_t *line = &wide[(size_t(n) * height + y) * width + 1];
                    const int row = (n * out_.height + y) * out_.width;
                    for (int x = 0; x < out_.width; x++)
                        if (line[x] | line[x + width] | line[x + 2 * width]) to.push_back(row + x);
                }
            from = &to;
        }
        dilated_ = reach;
    }

    // Everything is active and nothing has been spent.
    void start() {
        const int elements = model_.halting == SACT_IMAGES ? out_.n : out_.positions();
        std::fill_n(s_.cumulative.need(elements), elements, 0.0f);
        std::fill_n(s_.remainder.need(elements), elements, 1.0f);
        s_.units.assign(elements, 0);
        std::fill_n(s_.frozen.need(size_t(out_.n) * stride_), size_t(out_.n) * stride_, 0.0f);
        list_all();
    }

    // Sums of the channels over each image: of the rows that have halted, kept, and of the active ones, anew.
    void means() {
        const int count = int(active_.size()), piece = 64, pieces = (count + piece - 1) / piece;
        // A piece may hold the end of one image and the start of the next: cut pieces at images.
        starts_.clear();
        for (int m = 0; m < count;) {
            const int image = active_[m] / out_.area();
            int end = std::min(count, m + piece);
            if (active_[end - 1] / out_.area() != image)
                end = int(std::lower_bound(active_.begin() + m, active_.begin() + end, (image + 1) * out_.area()) -
                          active_.begin());
            starts_.push_back(m);
            m = end;
        }
        (void)pieces;
        const int parts = int(starts_.size());
        float *sums = s_.sums.need(size_t(parts) * stride_);
        auto add = [&](int i, int) {
            const int end = i + 1 < parts ? starts_[i + 1] : count;
            float *to = sums + size_t(i) * stride_;
            for (size_t c = 0; c < width_; c += kWidth) {
                Vec total = load(state_ + size_t(active_[starts_[i]]) * stride_ + c);
                for (int m = starts_[i] + 1; m < end; m++) total += load(state_ + size_t(active_[m]) * stride_ + c);
                store(to + c, total);
            }
        };
        if (double(count) * stride_ < kSmall)
            for (int i = 0; i < parts; i++) add(i, 0);
        else
            s_.team.run(parts, add);
        float *mean = s_.mean.need(size_t(out_.n) * stride_);
        std::copy_n(s_.frozen.data(), size_t(out_.n) * stride_, mean);
        for (int i = 0; i < parts; i++) {
            float *to = mean + size_t(active_[starts_[i]] / out_.area()) * stride_;
            for (size_t c = 0; c < width_; c += kWidth)
                store(to + c, load(to + c) + load(sums + size_t(i) * stride_ + c));
        }
        const float share = 1.0f / float(out_.area());
        for (size_t i = 0; i < size_t(out_.n) * stride_; i++) mean[i] *= share;
    }
    Index starts_;

    // One turn of Algorithm 1 behind unit u: scores, weights, and who goes on.
    void halt(const Unit &unit, int u) {
        const int area = out_.area(), count = int(active_.size());
        const bool images = model_.halting == SACT_IMAGES;
        float *output = s_.output.need(size_t(out_.positions()) * stride_);
        const Score *score = unit.score.get();
        float *global = s_.small.need(out_.n);
        if (score) {
            means();
            int last = -1;
            for (int32_t row : active_) {
                const int n = row / area;
                if (n == last) continue;
                last = n;
                const float *mean = s_.mean.data() + size_t(n) * stride_;
                Vec total = {};
                for (size_t c = 0; c < width_; c += kWidth)
                    total += score->global_before(mean, int(c)) * load(&score->global_weight[c]);
                global[n] = sum(total) + score->bias;
            }
        }
        float *cumulative = s_.cumulative.data(), *remainder = s_.remainder.data();
        int32_t *units = s_.units.data();
        next_.assign(count, 0);
        const int length = int(units_.size());
        // What one element's score makes of its state; its weight p.
        auto turn = [&](int element, float logit, bool *goes_on) {
            float h = 1.0f / (1.0f + std::exp(-logit));
            if (result_.forced) h = result_.forced[element] == u + 1 ? 1.0f : 0.0f;
            units[element]++;
            *goes_on = false;
            float weight = remainder[element];
            if (score) {
                cumulative[element] += h;
                if (cumulative[element] < 1.0f - model_.eps) {
                    *goes_on = true;
                    weight = h;
                    remainder[element] -= h;
                }
            }
            if (result_.distribution) {
                const int n = images ? element : element / area;
                const size_t each = images ? 1 : area, at = images ? 0 : element % area;
                result_.distribution[(size_t(n) * length + u) * each + at] = weight;
            }
            return weight;
        };
        weights_.assign(images ? out_.n : 0, 0.0f);
        on_.assign(images ? out_.n : 0, 0);
        if (images) {
            int last = -1;
            for (int32_t row : active_)
                if (row / area != last) {
                    last = row / area;
                    bool goes_on;
                    weights_[last] = turn(last, global[last], &goes_on);
                    on_[last] = goes_on;
                }
        }
        auto work = [&](int a, int b) {
            for (int m = a; m < b; m++) {
                const int row = active_[m], n = row / area;
                float weight;
                if (images) {
                    weight = weights_[n];
                    next_[m] = on_[n];
                } else {
                    bool goes_on;
                    const float logit = score ? global[n] + local(*score, row) : 0.0f;
                    weight = turn(row, logit, &goes_on);
                    next_[m] = goes_on;
                }
                const float *x = state_ + size_t(row) * stride_;
                float *to = output + size_t(row) * stride_;
                if (u == 0)
                    for (size_t c = 0; c < width_; c += kWidth) store(to + c, weight * load(x + c));
                else
                    for (size_t c = 0; c < width_; c += kWidth) store(to + c, load(to + c) + weight * load(x + c));
            }
        };
        over_rows(s_, count, 32, double(count) * stride_ * (images ? 2 : 11) < kSmall, work);
        float *frozen = s_.frozen.data();
        size_t kept = 0;
        for (int m = 0; m < count; m++) {
            const int row = active_[m];
            if (next_[m]) {
                active_[kept++] = row;
            } else if (score) {
                const float *x = state_ + size_t(row) * stride_;
                float *to = frozen + size_t(row / area) * stride_;
                for (size_t c = 0; c < width_; c += kWidth) store(to + c, load(to + c) + load(x + c));
            }
        }
        if (int(kept) != count) {
            active_.resize(kept);
            dilated_ = -1;
        }
    }
    std::vector<uint8_t> next_, on_;
    std::vector<float> weights_;

    // The local term of a score: a 3x3 convolution to one channel at one position.
    float local(const Score &score, int row) const {
        const int p = row % out_.area(), y = p / out_.width, x = p % out_.width;
        const float *from[9], *weight[9];
        int taps = 0;
        float constant = 0.0f;
        for (int t = 0; t < 9; t++) {
            const int v = y + t / 3 - 1, w = x + t % 3 - 1;
            if (v < 0 || v >= out_.height || w < 0 || w >= out_.width) continue;
            from[taps] = state_ + (size_t(row) + (t / 3 - 1) * out_.width + t % 3 - 1) * stride_;
            weight[taps++] = &score.local_weight[size_t(t) * width_];
            constant += score.local_constant[t];
        }
        const int width = int(width_);
        if (score.local_before.identity())
            return constant + (taps == 9 ? dot<9>(from, weight, width) : dot<0>(from, weight, width, taps));
        Vec total = {};
        for (int c = 0; c < width; c += kWidth)
            for (int t = 0; t < taps; t++) total += score.local_before(from[t], c) * load(weight[t] + c);
        return constant + sum(total);
    }

    // The sum of products of `taps` pairs of rows; Taps: their number where it is known.
    template <int Taps>
    static float dot(const float *const *from, const float *const *weight, int width, int taps = Taps) {
        Vec a = {}, b = {}, c = {};
        for (int i = 0; i < width; i += kWidth) {
            int t = 0;
#pragma GCC unroll 3
            for (; t + 3 <= (Taps ? Taps : taps); t += 3) {
                a += load(from[t] + i) * load(weight[t] + i);
                b += load(from[t + 1] + i) * load(weight[t + 1] + i);
                c += load(from[t + 2] + i) * load(weight[t + 2] + i);
            }
            for (; t < (Taps ? Taps : taps); t++) a += load(from[t] + i) * load(weight[t] + i);
        }
        return sum(a + b + c);
    }
};

// 3x3/2 max-pooling with TensorFlow's SAME padding, in rows.
Grid max_pool(Session &s, const float *from, float *to, Grid in, size_t stride, int width) {
    Grid out = in;
    out.height = (in.height + 1) / 2;
    out.width = (in.width + 1) / 2;
    const int top = std::max((out.height - 1) * 2 + 3 - in.height, 0) / 2;
    const int left = std::max((out.width - 1) * 2 + 3 - in.width, 0) / 2;
    over_rows(s, out.positions(), 64, double(out.positions()) * stride * 9 < kSmall, [&](int a, int b) {
        for (int m = a; m < b; m++) {
            const int n = m / out.area(), y = m % out.area() / out.width * 2 - top, x = m % out.width * 2 - left;
            const int y0 = std::max(y, 0), y1 = std::min(y + 3, in.height);
            const int x0 = std::max(x, 0), x1 = std::min(x + 3, in.width);
            for (int c = 0; c < width; c += kWidth) {
                Vec best = load(from + (size_t(n * in.height + y0) * in.width + x0) * stride + c);
                for (int v = y0; v < y1; v++)
                    for (int w = x0; w < x1; w++) {
                        const Vec value = load(from + (size_t(n * in.height + v) * in.width + w) * stride + c);
                        best = value > best ? value : best;
                    }
                store(to + m * stride + c, best);
            }
        }
    });
    return out;
}

// False where an image holds NaN or infinite values.
bool run(const SactModel &model, Session &s, const float *images, const int64_t strides[4], int n, int height,
         int width, float *logits, const SactBlockResult *results) {
    // The stem reads pixels with their zeros around them, channels last.
    const Conv &stem = *model.stem;
    const int top = stem.before(height), left = stem.before(width);
    const Grid pixels{n, height + stem.kernel + 1, width + stem.kernel + 1, 0};
    const int depth = stem.in;
    float *input = s.images.need(size_t(pixels.positions() + stem.kernel) * depth);
    std::atomic<bool> finite{true};
    over_rows(s, n * pixels.height, 8, false, [&](int a, int b) {
        for (int line = a; line < b; line++) {
            const int i = line / pixels.height, y = line % pixels.height - top;
            float *to = input + size_t(line) * pixels.width * depth;
            std::fill(to, to + size_t(pixels.width) * depth, 0.0f);
            if (y < 0 || y >= height) continue;
            float check = 0.0f; // 0 * x is 0 for every finite x
            for (int c = 0; c < depth; c++) {
                const float *from = images + i * strides[0] + c * strides[1] + y * strides[2];
                for (int x = 0; x < width; x++) {
                    const float value = from[x * strides[3]];
                    to[(x + left) * depth + c] = value;
                    check += 0.0f * value;
                }
            }
            if (!(check == 0.0f)) finite = false;
        }
    });
    if (!finite) return false;
    Grid grid{n, stem.result(height), stem.result(width), 0};
    size_t stride = row_stride(stem.out);
    float *x = s.state[0].need(size_t(grid.positions() + 1) * stride);
    s.cells.resize(grid.positions());
    for (int i = 0, m = 0; i < n; i++)
        for (int v = 0; v < grid.height; v++)
            for (int w = 0; w < grid.width; w++)
                s.cells[m++] = (i * pixels.height + v * stem.stride) * pixels.width + w * stem.stride;
    int32_t offsets[64];
    for (int t = 0; t < stem.kernel; t++) offsets[t] = t * pixels.width;
    convolve(s, stem, Source{input, size_t(depth), nullptr, s.cells.data(), nullptr, offsets}, {x, stride},
             grid.positions());
    if (model.stem_pool) {
        float *pooled = s.output.need(size_t(grid.positions() + 1) * stride);
        grid = max_pool(s, x, pooled, grid, stride, padded(stem.out));
        x = pooled;
    }
    for (size_t b = 0; b < model.blocks.size(); b++) {
        const auto &units = model.blocks[b];
        BlockRun block(s, model, units, grid, results[b]);
        // The input must outlive the first unit only; the block's output may then take the input's place.
        grid = block(x, stride, &x);
        const int channels = units[0]->channels();
        stride = row_stride(channels);
        if (results[b].features)
            over_rows(s, grid.positions(), 64, false, [&](int from, int to) {
                for (int m = from; m < to; m++)
                    std::copy_n(x + m * stride, channels, results[b].features + size_t(m) * channels);
            });
    }
    if (!logits || !model.classes) return true;
    float *pooled = s.mean.need(size_t(n) * stride);
    s.team.run(n, [&](int i, int) {
        float *to = pooled + size_t(i) * stride;
        const float share = 1.0f / float(grid.area());
        for (int c = 0; c < padded(model.classifier->in); c += kWidth) {
            Vec total = {};
            for (int m = i * grid.area(); m < (i + 1) * grid.area(); m++)
                total += model.pool_first ? load(x + m * stride + c) : model.before_classifier(x + m * stride, c);
            store(to + c, total * share);
            if (model.pool_first) store(to + c, model.before_classifier(to, c));
        }
    });
    const size_t wide = padded(model.classes);
    float *scores = s.sums.need(size_t(n) * wide);
    convolve(s, *model.classifier, Source{pooled, stride}, {scores, wide}, n);
    for (int i = 0; i < n; i++) std::copy_n(scores + i * wide, model.classes, logits + size_t(i) * model.classes);
    return true;
}

} // namespace sact

SactModel *sact_pack(const SactNetwork *network) {
    try {
        return new SactModel(*network);
    } catch (...) {
        return nullptr;
    }
}

void sact_free(SactModel *model) { delete model; }

int sact_run(SactModel *model, const float *images, const int64_t strides[4], int32_t n, int32_t height,
             int32_t width, int32_t threads, float *logits, SactBlockResult *blocks) {
    try {
        std::unique_ptr<Session> session = model->borrow(std::max(1, threads));
        session->team.wake();
        bool finite;
        try {
            finite = sact::run(*model, *session, images, strides, n, height, width, logits, blocks);
        } catch (...) {
            session->team.rest();
            throw;
        }
        session->team.rest();
        model->give_back(std::move(session));
        return finite ? 0 : 2;
    } catch (...) {
        return 1; // memory is short
    }
}

int64_t sact_workspace_bytes(SactModel *model) {
    std::lock_guard<std::mutex> lock(model->mutex);
    int64_t total = 0;
    for (const auto &session : model->idle) total += session->bytes();
    return total;
}

int32_t sact_abi() { return SACT_ABI; }
int32_t sact_vector_width() { return kWidth; }

int32_t sact_supports(const char *isa) {
    const std::string name(isa);
    if (name == "portable") return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name == "avx512")
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#elif defined(__aarch64__)
    if (name == "neon") return 1;
#endif
    return 0;
}
