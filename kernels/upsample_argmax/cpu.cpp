// upsample_argmax on a CPU: argmax.c itself, its shares of the work handed out to threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

extern "C" {
#include "argmax.c"

// Returns 0, or 1 where there is no memory.
int upsample_argmax_threads(const float* logits, int batch, int classes, int h, int w, int height, int width, int align_corners, int threads,
                            unsigned char* classmap) {
    const double values = double(batch) * classes * h * w;  // one costs about a nanosecond, starting a thread tens of microseconds
    threads = int(std::min<double>(threads, 1 + values / 1e5));
    const int parts = threads == 1 ? 1 : 4 * threads;  // borders between classes lie anywhere: who is done early takes another part
    std::atomic<int> next{0}, failed{0};
    auto some = [&] {
        for (int part; (part = next.fetch_add(1)) < parts;)
            if (upsample_argmax(logits, batch, classes, h, w, height, width, align_corners, part, parts, classmap)) failed = 1;
    };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back(some);
    some();
    for (auto& thread : others) thread.join();
    return failed;
}
}
