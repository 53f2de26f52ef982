// The header in two translation units of one program: everything is inline.

#include <weightsync/weightsync.hpp>

#include <cstdio>

weightsync::Layout make_layout();

int main() {
  weightsync::ErrorRecord err;
  const weightsync::Layout layout = make_layout();
  const weightsync::Plan plan = weightsync::Plan::create(layout, layout, {}, err);
  if (err || plan.tensor_count() != 1) {
    std::fprintf(stderr, "%s\n", err.message());
    return 1;
  }
  return 0;
}
