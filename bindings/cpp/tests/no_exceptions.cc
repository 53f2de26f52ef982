// Compiled with -fno-exceptions -fno-rtti: everything is there, and nothing
// throws.

#include "check.hpp"

#include <weightsync/weightsync.hpp>

namespace ws = weightsync;

int main() {
  ws::ErrorRecord err;
  const ws::Layout broken = ws::Layout::from_json("not JSON", err);
  CHECK(!broken && err.status() == ws::Status::layout_invalid);
  const ws::Layout layout = ws::Layout::from_json(
      R"({"weightsync_layout": 1, "ranks": {"first": 0, "count": 1},
          "tensors": [{"name": "w", "shape": [4], "dtype": "f32"}]})",
      err);
  CHECK(!err);
  const ws::Plan plan = ws::Plan::create(layout, layout, {}, err);
  ws::Transport transport = ws::Transport::create(ws::TransportKind::loopback, 0, 1, err);
  const auto greeting = transport.greeting(err);
  transport.meet({greeting}, std::chrono::seconds(60), err);
  CHECK(!err);
  ws::Session session = ws::Session::create(transport, {}, err);
  float from[4] = {1, 2, 3, 4};
  float to[4] = {};
  const std::uint32_t nothing = session.load(plan, err);
  CHECK(err.status() == ws::Status::buffer_mismatch && nothing == 0);
  session.bind(ws::Side::source, "w", from, sizeof from, err);
  session.bind(ws::Side::destination, "w", to, sizeof to, err);
  ws::Request request = ws::Request::create(session, session.load(plan, err), err);
  request.submit(ws::RequestOptions(7), nullptr, err);
  CHECK(request.wait(ws::no_deadline, err) && !err);
  CHECK(request.outcome(err).copy == ws::Outcome::complete && !err);
  for (int i = 0; i < 4; i++) CHECK(to[i] >= from[i] && to[i] <= from[i]);
  std::puts("nothing was thrown");
  return 0;
}
