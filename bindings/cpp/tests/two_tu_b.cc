#include <weightsync/weightsync.hpp>

weightsync::Layout make_layout() {
  weightsync::ErrorRecord err;
  return weightsync::Layout::from_json(
      R"({"weightsync_layout": 1, "ranks": {"first": 0, "count": 1},
          "tensors": [{"name": "w", "shape": [4, 4], "dtype": "f32"}]})",
      err);
}
