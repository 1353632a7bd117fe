// A packed network, and the working memory of its runs.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "convolve.h"

namespace sact {

struct Block {
    int halting;
    bool halted; // whether the output is the state at halting
    float threshold;
    std::vector<std::unique_ptr<Unit>> units;

    explicit Block(const SactBlock &from) : halting(from.halting), halted(from.halted != 0), threshold(from.threshold) {
        for (int u = 0; u < from.n_units; u++) units.push_back(std::make_unique<Unit>(from.units[u]));
    }
};

} // namespace sact

struct SactModel {
    int stem_pool, pool_first, classes;
    size_t weight_bytes = 0; // of the blocks
    std::unique_ptr<sact::Conv> stem; // or null
    sact::Activation after_stem;
    std::vector<sact::Block> blocks;
    sact::Pointwise before_classifier;
    std::unique_ptr<sact::Conv> classifier;

    std::mutex mutex;
    std::vector<std::unique_ptr<sact::Session>> idle;

    explicit SactModel(const SactNetwork &from)
        : stem_pool(from.stem_pool), pool_first(from.pool_first), classes(from.classes),
          stem(from.stem.out ? std::make_unique<sact::Conv>(from.stem, true) : nullptr),
          after_stem(sact::as_activation(from.after_stem)) {
        for (int b = 0; b < from.n_blocks; b++) {
            blocks.emplace_back(from.blocks[b]);
            for (const auto &unit : blocks.back().units) weight_bytes += unit->bytes();
        }
        if (classes) {
            before_classifier = sact::Pointwise(from.before_classifier, from.classifier.in);
            classifier = std::make_unique<sact::Conv>(from.classifier);
        }
    }

    ~SactModel() {
        for (auto &session : idle)
            if (session->process != getpid()) (void)session.release(); // its threads stayed in the parent process
    }

    std::unique_ptr<sact::Session> borrow(int threads) {
        std::lock_guard<std::mutex> lock(mutex);
        while (!idle.empty()) {
            std::unique_ptr<sact::Session> session = std::move(idle.back());
            idle.pop_back();
            if (session->process != getpid()) {
                (void)session.release(); // its threads stayed in the parent process
                continue;
            }
            if (session->team.size() == threads) return session;
        }
        return std::make_unique<sact::Session>(threads);
    }
    void give_back(std::unique_ptr<sact::Session> session) {
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(session));
    }
};
