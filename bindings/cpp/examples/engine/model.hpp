// The model of the example: y = down * relu(up * x). Its weights are small whole
// numbers that follow from the version, so an answer can be checked to the last
// bit, and one that mixes two versions is seen to be wrong.

#ifndef ENGINE_EXAMPLE_MODEL_HPP
#define ENGINE_EXAMPLE_MODEL_HPP

#include <weightsync/weightsync.hpp>

#include <array>
#include <fstream>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

constexpr int kInput = 256;
constexpr int kHidden = 1024;

using Vector = std::array<float, kInput>;

inline float up_weight(int version, int row, int col) {
  return static_cast<float>((row * 7 + col * 3 + version * 5) % 11 - 5);
}

inline float down_weight(int version, int row, int col) {
  return static_cast<float>((row * 5 + col * 2 + version * 3) % 11 - 5);
}

/** The n-th prompt. */
inline Vector prompt(int n) {
  Vector x{};
  for (int i = 0; i < kInput; i++) x[i] = static_cast<float>((n + i) % 3);
  return x;
}

/** What the whole model of one version answers. All sums are below 2^24: exact. */
inline Vector expected_answer(int version, const Vector &x) {
  Vector y{};
  for (int h = 0; h < kHidden; h++) {
    float sum = 0;
    for (int i = 0; i < kInput; i++) sum += up_weight(version, h, i) * x[i];
    if (sum <= 0) continue;
    for (int i = 0; i < kInput; i++) y[i] += down_weight(version, i, h) * sum;
  }
  return y;
}

/** The plan of both sides. Every rank makes it alone, and all make the same. */
inline weightsync::Plan make_plan(const std::string &folder) {
  const auto read = [&](const char *name) {
    std::ifstream file(folder + "/" + name);
    if (!file) throw std::runtime_error("cannot read " + folder + "/" + name);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    return weightsync::Layout::from_json(text);
  };
  return weightsync::Plan::create(read("trainer.json"), read("engine.json"));
}

/** Runs rank 1 in a process of its own and rank 0 in this one; the exit status of both. */
template <class F> int run_two_processes(F &&run_rank) {
  // First the fork, then the library: transports do not survive it.
  const pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) _exit(run_rank(1));
  const int own = run_rank(0);
  int status = 0;
  waitpid(child, &status, 0);
  return own != 0 || status != 0 ? 1 : 0;
}

#endif
