// Runs random small networks of both families' shapes, and of somebody's, through the CPU engine, for sanitizers to watch. Every result must
// be finite (working memory starts as NaN, see Buffer::need), obey the forced units, and be the same, bit for bit, in used
// working memory, with more threads, and with another run beside it.
#include "native.cpp"

#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <thread>

struct Random {
    std::mt19937 engine;

    int within(int low, int high) { return low + int(engine() % unsigned(high - low + 1)); }
    float value() { return float(engine() % 2000) / 1000.0f - 1.0f; }
};

// A network's description, and everything that it points to.
class Description {
  public:
    SactNetwork network{};

    int halting;

    Description(Random &random, bool bottleneck, int halting, bool foreign) : halting(halting), random_(random) {
        const int stem = random.within(1, 20);
        network.stem = bottleneck ? conv(random.within(1, 4), stem, 7, 2, 3) : conv(random.within(1, 4), stem, 3, 1, 1);
        network.stem_pool = bottleneck ? random.within(SACT_POOL_SAME, SACT_POOL_PADDED) : SACT_NO_POOL;
        network.after_stem = foreign ? activation() : kNone;
        int channels = stem;
        for (int b = random.within(1, 3); b > 0; b--) {
            const int width = random.within(1, bottleneck ? 24 : 40), out = bottleneck ? 4 * width : channels + width;
            const int stride = random.within(1, 2), units = random.within(1, 4);
            if (foreign && random.within(0, 1)) plain_block(channels);
            units_.emplace_back();
            for (int u = 0; u < units; u++) {
                units_.back().push_back(foreign ? foreign_unit(u ? out : channels, out, width, u ? 1 : stride)
                                        : bottleneck ? bottleneck_unit(u ? out : channels, width, u ? 1 : stride)
                                                     : basic_unit(u ? out : channels, out, u ? 1 : stride));
                if (halting != SACT_NONE && u + 1 < units) units_.back().back().score = score(out, halting, bottleneck);
            }
            blocks_.push_back({units, halting, foreign && random.within(0, 1), 0.99f, units_.back().data()});
            channels = out;
        }
        network.n_blocks = int(blocks_.size());
        network.blocks = blocks_.data();
        network.classes = random.within(0, 40);
        network.pool_first = !bottleneck;
        if (network.classes) {
            network.before_classifier = foreign ? layer_norm(channels) : norm(channels, 0.0f);
            if (foreign) network.pool_first = 1;
            network.classifier = conv(channels, network.classes, 1, 1, 0);
        }
    }
    int units(int block) const { return blocks_[block].n_units; }
    int channels(int block) const {
        return blocks_[block].units[0].channels;
    }
    int halting_of(int block) const { return blocks_[block].halting; }

  private:
    Random &random_;
    std::deque<std::vector<float>> numbers_;
    std::deque<std::vector<SactStage>> stages_;
    std::deque<std::vector<SactUnit>> units_;
    std::deque<SactConv> projections_;
    std::deque<SactScore> scores_;
    std::vector<SactBlock> blocks_;

    const float *draw(int count, float scale) {
        numbers_.emplace_back(count);
        for (float &number : numbers_.back()) number = scale * random_.value();
        return numbers_.back().data();
    }
    static constexpr float kNoCap = std::numeric_limits<float>::infinity();
    static constexpr SactActivation kNone{SACT_SLOPE, 1.0f, kNoCap};
    SactConv conv(int in, int out, int kernel, int stride, int pad, bool same = false, int groups = 1) {
        const int reads = in / groups * kernel * kernel;
        return {in, out, kernel, stride, pad, same, groups, draw(out * reads, 1.5f / std::sqrt(float(reads))),
                random_.within(0, 1) ? draw(out, 0.1f) : nullptr};
    }
    SactPointwise norm(int channels, float slope) {
        return {draw(channels, 1.0f), draw(channels, 0.1f), 0.0f, {SACT_SLOPE, slope, kNoCap}};
    }
    SactPointwise layer_norm(int channels) { return {draw(channels, 1.0f), draw(channels, 0.1f), 1e-5f, kNone}; }
    static SactPointwise only(SactActivation activation) { return {nullptr, nullptr, 0.0f, activation}; }
    SactActivation activation() {
        const int kind = random_.within(SACT_SLOPE, SACT_GELU);
        return {kind, kind == SACT_SLOPE ? 0.0f : 0.5f, random_.within(0, 1) ? 6.0f : kNoCap};
    }
    SactUnit unit(std::vector<SactStage> stages) {
        stages_.push_back(std::move(stages));
        const int channels = stages_.back().back().conv.out, count = int(stages_.back().size());
        return {channels, count, SACT_IDENTITY, 0, 1, 0, stages_.back().data(), nullptr, only(kNone), nullptr};
    }
    // What stands between somebody's blocks: a norm, or a chain without a shortcut.
    void plain_block(int &channels) {
        units_.emplace_back();
        if (random_.within(0, 1)) {
            units_.back().push_back({channels, 0, SACT_NO_SHORTCUT, 0, 1, 0, nullptr, nullptr, layer_norm(channels), nullptr});
        } else {
            const int out = random_.within(1, 40), kernel = 2 * random_.within(1, 3) + 1;
            const bool same = random_.within(0, 1);
            units_.back().push_back(
                unit({{only(kNone), conv(channels, channels, kernel, random_.within(1, 2), same ? 0 : kernel / 2, same, channels)},
                      {random_.within(0, 1) ? layer_norm(channels) : only(activation()), conv(channels, out, 1, 1, 0)}}));
            units_.back().back().shortcut = SACT_NO_SHORTCUT;
            units_.back().back().after = random_.within(0, 1) ? layer_norm(out) : only(activation());
            channels = out;
        }
        blocks_.push_back({1, SACT_NONE, 0, 0.0f, units_.back().data()});
    }
    // An inverted residual, a bottleneck with groups, or a k x k depthwise convolution in front.
    SactUnit foreign_unit(int in, int out, int width, int stride) {
        const int kernel = 2 * random_.within(1, 3) + 1, kind = random_.within(0, 2);
        const SactActivation inside = activation();
        SactUnit result{};
        if (kind == 0) {
            result = unit({{only(kNone), conv(in, in, kernel, stride, kernel / 2, false, in)},
                           {layer_norm(in), conv(in, width, 1, 1, 0)},
                           {only(inside), conv(width, out, 1, 1, 0)}});
        } else {
            const int groups = kind == 1 ? 4 * width : random_.within(1, 4), wide = kind == 1 ? groups : groups * width;
            result = unit({{only(kNone), conv(in, wide, 1, 1, 0)},
                           {only(inside), conv(wide, wide, kernel, stride, kernel / 2, false, groups)},
                           {only(inside), conv(wide, out, 1, 1, 0)}});
        }
        if (random_.within(0, 1)) result.after = only(activation());
        result.shortcut = in == out && stride == 1 ? SACT_IDENTITY : SACT_NO_SHORTCUT;
        return result;
    }
    SactUnit bottleneck_unit(int in, int width, int stride) {
        const SactPointwise relu = only({SACT_SLOPE, 0.0f, kNoCap});
        SactUnit result = unit({{norm(in, 0.0f), conv(in, width, 1, 1, 0)},
                                {relu, conv(width, width, 3, stride, 1)},
                                {relu, conv(width, 4 * width, 1, 1, 0)}});
        result.stride = stride;
        if (in == 4 * width) return result;
        projections_.push_back(conv(in, 4 * width, 1, stride, 0));
        result.shortcut = SACT_CONVOLUTION;
        result.preactivated = 1;
        result.projection = &projections_.back();
        return result;
    }
    SactUnit basic_unit(int in, int out, int stride) {
        const SactPointwise before = random_.within(0, 3) ? norm(in, 0.1f) : only(kNone);
        SactUnit result = unit({{before, conv(in, out, 3, stride, stride > 1 ? 0 : 1, stride > 1)},
                                {only({SACT_SLOPE, 0.01f, kNoCap}), conv(out, out, 3, 1, 1)}});
        if (in == out) return result;
        result.shortcut = SACT_POOL_PAD;
        result.preactivated = random_.within(0, 1);
        result.stride = stride;
        result.before = (out - in) / 2;
        return result;
    }
    const SactScore *score(int channels, int halting, bool bottleneck) {
        const float slope = bottleneck ? 1.0f : 0.1f;
        const bool local = halting == SACT_POSITIONS;
        scores_.push_back({local ? norm(channels, slope) : only(kNone), norm(channels, slope),
                           local ? draw(9 * channels, 0.3f) : nullptr, draw(channels, 0.5f), random_.value()});
        return &scores_.back();
    }
};

// What one run reads and writes, in memory of exactly the right size.
struct Batch {
    int count, height, width;
    std::vector<float> images;
    int64_t strides[4];
    std::vector<std::vector<int32_t>> forced; // per block, or empty
};

struct Result {
    std::vector<std::vector<int32_t>> units;
    std::vector<std::vector<float>> floats; // cost, distribution and features of every block, then logits
};

static int elements(const Description &of, const Batch &batch, int height, int width) {
    return of.halting == SACT_IMAGES ? batch.count : batch.count * height * width;
}

// Calls work(block, height, width) with the size of every block's output.
template <class Work> static void each_block(const Description &of, const Batch &batch, const Work &work) {
    const auto after = [](const SactConv &conv, int size) {
        return conv.same ? (size + conv.stride - 1) / conv.stride : (size + 2 * conv.pad - conv.kernel) / conv.stride + 1;
    };
    int height = after(of.network.stem, batch.height), width = after(of.network.stem, batch.width);
    if (of.network.stem_pool) height = (height + 1) / 2, width = (width + 1) / 2;
    for (int b = 0; b < of.network.n_blocks; b++) {
        const SactUnit &first = of.network.blocks[b].units[0];
        for (int i = 0; i < first.n_stages; i++) {
            height = after(first.stages[i].conv, height);
            width = after(first.stages[i].conv, width);
        }
        work(b, height, width);
    }
}

static Batch make_batch(Random &random, const Description &of) {
    Batch batch{random.within(1, 4), random.within(7, 37), random.within(7, 37), {}, {}, {}};
    const int64_t channels = of.network.stem.in, height = batch.height, width = batch.width;
    batch.images.resize(batch.count * channels * height * width);
    for (float &pixel : batch.images) pixel = random.value();
    const int64_t rows[4] = {channels * height * width, height * width, width, 1};
    const int64_t pixels[4] = {channels * height * width, 1, width * channels, channels};
    std::memcpy(batch.strides, random.within(0, 1) ? rows : pixels, sizeof batch.strides);
    if (of.halting == SACT_NONE || random.within(0, 3) == 0) return batch;
    const int kind = random.within(0, 4); // all, one unit, one place, the last one, any
    each_block(of, batch, [&](int b, int h, int w) {
        const int length = of.units(b), count = elements(of, batch, h, w);
        batch.forced.emplace_back(count, kind == 0 ? length : 1);
        if (kind == 2) batch.forced.back()[random.within(0, count - 1)] = length;
        if (kind == 3) batch.forced.back().back() = length;
        if (kind == 4)
            for (int32_t &units : batch.forced.back()) units = random.within(1, length);
    });
    return batch;
}

static void fail(const char *what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

static Result run_once(SactModel *model, const Description &of, const Batch &batch, int threads) {
    Result result;
    std::vector<SactBlockResult> blocks(of.network.n_blocks);
    each_block(of, batch, [&](int b, int h, int w) {
        const int count = elements(of, batch, h, w);
        result.units.emplace_back(count, of.units(b));
        result.floats.emplace_back(count);
        result.floats.emplace_back(count * of.units(b));
        result.floats.emplace_back(batch.count * h * w * of.channels(b));
        float *features = result.floats.back().data();
        if (of.halting_of(b) == SACT_NONE)
            blocks[b] = {nullptr, nullptr, nullptr, features, nullptr};
        else
            blocks[b] = {result.units.back().data(), result.floats[3 * b].data(), result.floats[3 * b + 1].data(), features,
                         batch.forced.empty() ? nullptr : batch.forced[b].data()};
    });
    result.floats.emplace_back(batch.count * of.network.classes);
    float *logits = of.network.classes ? result.floats.back().data() : nullptr;
    if (sact_run(model, batch.images.data(), batch.strides, batch.count, batch.height, batch.width, threads, logits,
                 blocks.data()))
        fail("sact_run reports an error");
    return result;
}

static void check(const Batch &batch, const Result &result) {
    for (const auto &values : result.floats)
        for (float value : values)
            if (!std::isfinite(value)) fail("a result is not finite");
    if (!batch.forced.empty() && result.units != batch.forced) fail("forced units are not obeyed");
}

static bool same(const Result &a, const Result &b) { return a.units == b.units && a.floats == b.floats; }

int main(int, char **arguments) {
    const int networks = std::atoi(arguments[1]);
    for (int seed = 0; seed < networks; seed++) {
        Random random{std::mt19937(seed)};
        const Description of(random, seed % 2, seed / 2 % 3, seed / 6 % 2);
        SactModel *model = sact_pack(&of.network);
        const Batch batch = make_batch(random, of), other = make_batch(random, of);
        const Result first = run_once(model, of, batch, 1);
        check(batch, first);
        check(other, run_once(model, of, other, 2));
        for (int threads = 1; threads <= 3; threads++)
            if (!same(run_once(model, of, batch, threads), first)) fail("threads or used memory change a result");
        Result beside;
        std::thread thread([&] { beside = run_once(model, of, batch, 2); });
        const Result here = run_once(model, of, batch, 2);
        thread.join();
        if (!same(beside, first) || !same(here, first)) fail("a run beside another changes a result");
        sact_free(model);
    }
    std::printf("%d networks\n", networks);
}
