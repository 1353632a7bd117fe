// A packed network, and the working memory of its runs.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "convolve.h"

struct SactModel {
    int halting, stem_pool, pool_first, classes;
    size_t weight_bytes = 0; // of the blocks
    std::unique_ptr<sact::Conv> stem;
    std::vector<std::vector<std::unique_ptr<sact::Unit>>> blocks;
    std::vector<float> thresholds; // of the blocks
    sact::Pointwise before_classifier;
    std::unique_ptr<sact::Conv> classifier;

    std::mutex mutex;
    std::vector<std::unique_ptr<sact::Session>> idle;

    explicit SactModel(const SactNetwork &from)
        : halting(from.halting), stem_pool(from.stem_pool), pool_first(from.pool_first), classes(from.classes),
          stem(std::make_unique<sact::Conv>(from.stem, true)) {
        for (int b = 0; b < from.n_blocks; b++) {
            blocks.emplace_back();
            thresholds.push_back(from.blocks[b].threshold);
            for (int u = 0; u < from.blocks[b].n_units; u++)
                blocks.back().push_back(std::make_unique<sact::Unit>(from.blocks[b].units[u]));
            for (const auto &unit : blocks.back()) weight_bytes += unit->bytes();
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
