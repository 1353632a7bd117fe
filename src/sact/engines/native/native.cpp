// A network run at its active positions. States are rows of channels, one row per position of the batch; a convolution
// reads its input rows through pointers, so nothing is gathered and a 3x3 is a 1x1 with nine pointers.
#include "native.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "block.h"
#include "model.h"

namespace sact {

// 3x3/2 max-pooling in rows, with TensorFlow's SAME padding or a line on every side.
static Grid max_pool(Session &s, const float *from, float *to, Grid in, size_t stride, int width, bool is_padded) {
    Grid out = in;
    out.height = (in.height + 1) / 2;
    out.width = (in.width + 1) / 2;
    const int top = is_padded ? 1 : std::max((out.height - 1) * 2 + 3 - in.height, 0) / 2;
    const int left = is_padded ? 1 : std::max((out.width - 1) * 2 + 3 - in.width, 0) / 2;
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

// What sact_run was asked for.
struct Call {
    const float *images;
    const int64_t *strides;
    int n, height, width;
    float *logits;
    const SactBlockResult *results;
};

// Run `n` images from the one numbered `first` on. False where one holds NaN or infinite values.
static bool run(const SactModel &model, Session &s, const Call &call, int first, int n) {
    const int64_t *strides = call.strides;
    const float *images = call.images + first * strides[0];
    const int height = call.height, width = call.width;
    const SactBlockResult *results = call.results;
    float *logits = call.logits ? call.logits + size_t(first) * model.classes : nullptr;
    s.layouts.start({n, height, width, 0});
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
    int32_t offsets[kMaxTaps];
    for (int t = 0; t < stem.kernel; t++) offsets[t] = t * pixels.width;
    convolve(s, stem, Source{input, size_t(depth), nullptr, s.cells.data(), nullptr, offsets}, {x, stride, nullptr, false, model.after_stem},
             grid.positions());
    if (model.stem_pool) {
        float *pooled = s.output.need(size_t(grid.positions() + 1) * stride);
        grid = max_pool(s, x, pooled, grid, stride, padded(stem.out), model.stem_pool == SACT_POOL_PADDED);
        x = pooled;
    }
    for (size_t b = 0; b < model.blocks.size(); b++) {
        const Block &block = model.blocks[b];
        // The input must outlive the first unit only; the block's output may then take the input's place.
        grid = BlockRun(s, block, grid, results[b], first)(x, stride, &x);
        const int channels = block.units[0]->channels;
        stride = row_stride(channels);
        if (results[b].features) {
            float *features = results[b].features + size_t(first) * grid.area() * channels;
            over_rows(s, grid.positions(), 64, false, [&](int from, int to) {
                for (int m = from; m < to; m++) std::copy_n(x + m * stride, channels, features + size_t(m) * channels);
            });
        }
    }
    if (!logits || !model.classes) return true;
    float *pooled = s.mean.need(size_t(n) * stride);
    s.team.run(n, [&](int i, int) {
        float *to = pooled + size_t(i) * stride;
        const float share = 1.0f / float(grid.area());
        for (int c = 0; c < padded(model.classifier->in); c += kWidth) {
            Vec total = {};
            for (int m = i * grid.area(); m < (i + 1) * grid.area();) {
                Vec line = {}; // one long sum would be imprecise
                for (const int end = m + grid.width; m < end; m++)
                    line += model.pool_first ? load(x + m * stride + c) : model.before_classifier(x + m * stride, c);
                total += line;
            }
            store(to + c, total * share);
        }
        if (model.pool_first) model.before_classifier.row(to, to, padded(model.classifier->in));
    });
    const size_t wide = padded(model.classes);
    float *scores = s.sums.need(size_t(n) * wide);
    convolve(s, *model.classifier, Source{pooled, stride}, {scores, wide}, n);
    for (int i = 0; i < n; i++) std::copy_n(scores + i * wide, model.classes, logits + size_t(i) * model.classes);
    return true;
}

// Images that run together: as many as have states that stay in a core's cache, and few enough to share out; all where
// weights come from memory. It does not depend on the threads, so that results do not.
static int together(const SactModel &model, const Call &call) {
    if (model.weight_bytes > kL3) return std::max(1, call.n);
    int height = model.stem->result(call.height), width = model.stem->result(call.width);
    size_t most = size_t(height) * width * row_stride(model.stem->out);
    if (model.stem_pool) height = (height + 1) / 2, width = (width + 1) / 2;
    for (const Block &block : model.blocks) {
        for (const auto &unit : block.units)
            for (const auto &stage : unit->stages) {
                height = stage->conv.result(height);
                width = stage->conv.result(width);
                most = std::max(most, size_t(height) * width * row_stride(stage->conv.out));
            }
        most = std::max(most, size_t(height) * width * row_stride(block.units[0]->channels));
    }
    return std::max(1, std::min(call.n / kShares, int(kL2 / (most * sizeof(float) + 1))));
}

// Every thread runs groups of images of its own; those that are left over are run by all threads, one after another.
static bool run_all(const SactModel &model, Session &s, const Call &call) {
    const int each = together(model, call), groups = (call.n + each - 1) / each, threads = s.team.size();
    std::atomic<bool> finite{true};
    const auto group = [&](Session &session, int i) {
        if (!run(model, session, call, i * each, std::min(each, call.n - i * each))) finite = false;
    };
    const int alone = threads > 1 ? groups - groups % threads : 0;
    s.team.run(alone, [&](int i, int thread) {
        if (!s.own[thread]) s.own[thread] = std::make_unique<Session>(1);
        group(*s.own[thread], i);
    });
    for (int i = alone; i < groups; i++) group(s, i);
    return finite;
}

// Copy rows of `channels` floats, with zeros behind them up to `width`.
static void copy_rows(Session &s, const float *from, size_t from_stride, float *to, size_t to_stride, int count,
                      int channels, int width) {
    over_rows(s, count, 64, double(count) * channels < kSmall, [&](int a, int b) {
        for (int m = a; m < b; m++) {
            std::copy_n(from + m * from_stride, channels, to + m * to_stride);
            std::fill(to + m * to_stride + channels, to + m * to_stride + width, 0.0f);
        }
    });
}

// One block, on rows from outside.
static void run_block(const Block &block, Session &s, const float *x, Grid grid, float *output,
                      const SactBlockResult &result) {
    const Unit &first = *block.units[0];
    const int in = first.stages.empty() ? first.channels : first.stages[0]->conv.in, out = first.channels;
    s.layouts.start({grid.n, grid.height, grid.width, -1});
    float *rows = s.state[0].need(size_t(grid.positions() + 1) * row_stride(in));
    copy_rows(s, x, in, rows, row_stride(in), grid.positions(), in, row_stride(in));
    grid = BlockRun(s, block, grid, result, 0)(rows, row_stride(in), &rows);
    copy_rows(s, rows, row_stride(out), output, out, grid.positions(), out, out);
}

// Call work(session); 1 where memory is short.
template <class Work> static int in_session(SactModel *model, int threads, const Work &work) {
    try {
        std::unique_ptr<Session> session = model->borrow(std::max(1, threads));
        int result = 1;
        session->team.gather([&] { result = work(*session); });
        model->give_back(std::move(session));
        return result;
    } catch (...) {
        return 1;
    }
}

// Positions and their neighbours are numbered with 31 bits.
static bool fits(int64_t n, int64_t height, int64_t width) { return n * (height + 16) * (width + 16) < int64_t(1) << 31; }

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
    if (!sact::fits(n, height, width)) return 3;
    return sact::in_session(model, threads, [&](sact::Session &session) {
        return sact::run_all(*model, session, {images, strides, n, height, width, logits, blocks}) ? 0 : 2;
    });
}

int sact_run_block(SactModel *model, int32_t block, const float *x, int32_t n, int32_t height, int32_t width,
                   int32_t threads, float *output, SactBlockResult *result) {
    if (!sact::fits(n, height, width)) return 3;
    return sact::in_session(model, threads, [&](sact::Session &session) {
        sact::run_block(model->blocks[block], session, x, {n, height, width, 0}, output, *result);
        return 0;
    });
}

int64_t sact_workspace_bytes(SactModel *model) {
    std::lock_guard<std::mutex> lock(model->mutex);
    int64_t total = 0;
    for (const auto &session : model->idle) total += session->bytes();
    return total;
}

void sact_began_in(int64_t process) {
#if defined(__linux__)
    sact::openmp.process = pid_t(process);
#else
    (void)process;
#endif
}

int32_t sact_abi() { return SACT_ABI; }
int32_t sact_vector_width() { return sact::kWidth; }

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
