// Runs random small networks of both families' shapes through the CPU engine, for sanitizers to watch. Every result must
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

    Description(Random &random, bool bottleneck, int halting) : random_(random) {
        const int stem = random.within(1, 20);
        network.halting = halting;
        network.stem = bottleneck ? conv(random.within(1, 4), stem, 7, 2, 3) : conv(random.within(1, 4), stem, 3, 1, 1);
        network.stem_pool = bottleneck;
        int channels = stem;
        for (int b = random.within(1, 3); b > 0; b--) {
            const int width = random.within(1, bottleneck ? 24 : 40), out = bottleneck ? 4 * width : channels + width;
            const int stride = random.within(1, 2), units = random.within(1, 4);
            units_.emplace_back();
            for (int u = 0; u < units; u++) {
                units_.back().push_back(bottleneck ? bottleneck_unit(u ? out : channels, width, u ? 1 : stride)
                                                   : basic_unit(u ? out : channels, out, u ? 1 : stride));
                if (halting != SACT_NONE && u + 1 < units) units_.back().back().score = score(out, halting, bottleneck);
            }
            blocks_.push_back({units, 0.99f, units_.back().data()});
            channels = out;
        }
        network.n_blocks = int(blocks_.size());
        network.blocks = blocks_.data();
        network.classes = random.within(0, 40);
        network.pool_first = !bottleneck;
        if (network.classes) {
            network.before_classifier = norm(channels, 0.0f);
            network.classifier = conv(channels, network.classes, 1, 1, 0);
        }
    }
    int units(int block) const { return blocks_[block].n_units; }
    int channels(int block) const {
        const SactUnit &unit = blocks_[block].units[0];
        return unit.stages[unit.n_stages - 1].conv.out;
    }

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
    SactConv conv(int in, int out, int kernel, int stride, int pad, bool same = false) {
        const int reads = in * kernel * kernel;
        return {in, out, kernel, stride, pad, same, draw(out * reads, 1.5f / std::sqrt(float(reads))),
                random_.within(0, 1) ? draw(out, 0.1f) : nullptr};
    }
    SactPointwise norm(int channels, float slope) { return {draw(channels, 1.0f), draw(channels, 0.1f), slope}; }
    SactUnit unit(std::vector<SactStage> stages) {
        stages_.push_back(std::move(stages));
        return {int(stages_.back().size()), SACT_IDENTITY, 0, 1, 0, stages_.back().data(), nullptr, nullptr};
    }
    SactUnit bottleneck_unit(int in, int width, int stride) {
        const SactPointwise relu{nullptr, nullptr, 0.0f};
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
        const SactPointwise before = random_.within(0, 3) ? norm(in, 0.1f) : SactPointwise{nullptr, nullptr, 1.0f};
        SactUnit result = unit({{before, conv(in, out, 3, stride, stride > 1 ? 0 : 1, stride > 1)},
                                {{nullptr, nullptr, 0.01f}, conv(out, out, 3, 1, 1)}});
        if (in == out) return result;
        result.shortcut = SACT_POOL_PAD;
        result.preactivated = random_.within(0, 1);
        result.stride = stride;
        result.before = (out - in) / 2;
        return result;
    }
    const SactScore *score(int channels, int halting, bool bottleneck) {
        const SactPointwise none{nullptr, nullptr, 1.0f};
        const float slope = bottleneck ? 1.0f : 0.1f;
        const bool local = halting == SACT_POSITIONS;
        scores_.push_back({local ? norm(channels, slope) : none, norm(channels, slope),
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
    return of.network.halting == SACT_IMAGES ? batch.count : batch.count * height * width;
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
    if (of.network.halting == SACT_NONE || random.within(0, 3) == 0) return batch;
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
        if (of.network.halting == SACT_NONE)
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
        const Description of(random, seed % 2, seed / 2 % 3);
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
