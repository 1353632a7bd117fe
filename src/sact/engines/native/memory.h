// Working memory: floats that are allocated once and reused.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>

namespace sact {

constexpr size_t kHugePage = 2 << 20;

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
#ifdef SACT_CHECK // for tests: what lies behind the end, and what was never written, is noticed
            void *exact = nullptr;
            if (posix_memalign(&exact, 64, count * sizeof(float))) throw std::bad_alloc();
            data_ = static_cast<float *>(exact);
            std::fill_n(data_, count, std::numeric_limits<float>::quiet_NaN());
#else
            const size_t page = count * sizeof(float) >= kHugePage / 2 ? kHugePage : 4096;
            const size_t bytes = (count * sizeof(float) + page - 1) / page * page;
            data_ = static_cast<float *>(std::aligned_alloc(page, bytes));
            if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
            if (page == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
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

} // namespace sact
