// Threads that work through numbered tasks together. Which thread runs a task never changes its result.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace sact {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The OpenMP threads of the process, PyTorch's. They wait in busy loops for milliseconds after each of its operations:
// threads of our own would share the cores with them, and a network between two operations would be slower.
struct OpenMp {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = nullptr;
    int (*thread_number)() = nullptr;
#if defined(__linux__)
    pid_t process = getpid(); // the one whose threads they are
    OpenMp() {
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
        thread_number = reinterpret_cast<decltype(thread_number)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    }
    // A forked process has none of them, and OpenMP would wait for them forever.
    bool there() const { return parallel && thread_number && process == getpid(); }
#else
    bool there() const { return false; }
#endif
};
inline OpenMp openmp; // found when the library is loaded

class Team {
  public:
    explicit Team(int threads) : ranges_(threads), threads_(threads), borrowed_(openmp.there()) {
        if (borrowed_) return;
        try {
            for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
        } catch (...) { // a thread could not start
            stop();
            throw;
        }
    }
    ~Team() { stop(); }
    int size() const { return threads_; }

    // Call work(), in which `run` may be called. Meanwhile the other threads spin, so that a parallel step starts within a
    // microsecond.
    template <class Work> void gather(const Work &work) {
        std::exception_ptr problem;
        const auto guarded = [&] {
            try {
                work();
            } catch (...) { // must not pass through OpenMP
                problem = std::current_exception();
            }
        };
        if (threads_ == 1 || !borrowed_) {
            wake();
            guarded();
            awake_ = false;
        } else {
            const auto each = [&](int thread) {
                if (thread > 0) return attend(thread);
                guarded();
                awake_ = false;
            };
            awake_ = true;
            openmp.parallel([](void *call) { (*static_cast<decltype(each) *>(call))(openmp.thread_number()); },
                            const_cast<void *>(static_cast<const void *>(&each)), unsigned(threads_), 0);
        }
        if (problem) std::rethrow_exception(problem);
    }

    // Run task(index, thread) for every index below `count`; returns when all are done. Each thread has a range of
    // tasks of its own, the same one for equal counts, so that it finds its data in its cache; who is done helps.
    template <class Task> void run(int count, const Task &task) {
        if (count <= 0) return;
        if (count == 1 || threads_ == 1) {
            for (int i = 0; i < count; i++) task(i, 0);
            return;
        }
        call_ = [](const void *context, int index, int thread) { (*static_cast<const Task *>(context))(index, thread); };
        context_ = &task;
        for (first_ = 0; first_ < count; first_ += int(kMask)) run_some(std::min(count - first_, int(kMask)));
        if (failed_.exchange(false)) throw std::bad_alloc();
    }

  private:
    void wake() {
        if (workers_.empty()) return;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            awake_ = true;
        }
        wake_.notify_all();
    }

    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            awake_ = true;
        }
        wake_.notify_all();
        for (auto &worker : workers_) worker.join();
    }

    // One word holds epoch (24 bits), end (20) and next task (20) of a range: a task is taken by adding one to it, which
    // fails for a worker that comes too late for this epoch.
    static constexpr uint64_t kMask = (1u << 20) - 1;
    static constexpr int kLinger = 10000; // pauses, on x86 together 0.2 to 0.4 ms

    // Tasks first_ ... first_ + count - 1.
    void run_some(int count) {
        done_.store(0, std::memory_order_relaxed);
        const uint64_t epoch = ++epoch_ << 40;
        for (int t = 0; t < threads_; t++) {
            const uint64_t from = uint64_t(count) * t / threads_, to = uint64_t(count) * (t + 1) / threads_;
            ranges_[t].word.store(epoch | to << 20 | from, std::memory_order_release);
        }
        while (take(0)) {
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) != count; spins++) relax(spins);
    }

    struct alignas(64) Range {
        std::atomic<uint64_t> word{0};
    };

    bool take(int thread) {
        const int threads = size();
        for (int i = 0; i < threads; i++) {
            std::atomic<uint64_t> &range = ranges_[(thread + i) % threads].word;
            uint64_t word = range.load(std::memory_order_acquire);
            while ((word & kMask) < (word >> 20 & kMask)) {
                if (range.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
                    try {
                        call_(context_, first_ + int(word & kMask), thread);
                    } catch (...) { // memory is short; only the caller's thread may say so
                        failed_.store(true, std::memory_order_relaxed);
                    }
                    done_.fetch_add(1, std::memory_order_acq_rel);
                    return true;
                }
            }
        }
        return false;
    }

    static void relax(int spins) {
        if (spins < 4000)
            pause_briefly();
        else
            std::this_thread::yield();
    }

    // A borrowed thread, until the work is done.
    void attend(int thread) {
        for (int spins = 0; awake_.load(std::memory_order_acquire); spins++) {
            if (take(thread))
                spins = 0;
            else
                relax(spins);
        }
    }

    // A thread of our own, until the end.
    void work(int thread) {
        for (int spins = 0;; spins++) {
            if (take(thread)) {
                spins = 0;
                continue;
            }
            // The next run may come at once: to be woken would take as long as a small step.
            if (!awake_.load(std::memory_order_acquire)) spins = 0;
            for (int i = 0; i < kLinger && !awake_.load(std::memory_order_acquire); i++) pause_briefly();
            if (!awake_.load(std::memory_order_acquire)) {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [this] { return awake_.load(); });
                spins = 0;
            }
            if (stop_.load(std::memory_order_acquire)) return;
            relax(spins);
        }
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> awake_{false}, stop_{false};
    std::vector<Range> ranges_;
    const int threads_;
    const bool borrowed_;
    uint64_t epoch_ = 0;
    alignas(64) std::atomic<int> done_{0};
    std::atomic<bool> failed_{false};
    void (*call_)(const void *, int, int) = nullptr;
    const void *context_ = nullptr;
    int first_ = 0;
};

} // namespace sact
