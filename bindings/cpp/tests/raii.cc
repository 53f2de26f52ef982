// Ownership, errors as exceptions, and a delivery between two threads.

#include "check.hpp"

#include <weightsync/weightsync.hpp>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string_view>
#include <thread>

using namespace std::chrono_literals;
namespace ws = weightsync;

namespace {

const char *const two_rows = R"({"weightsync_layout": 1, "ranks": {"first": 0, "count": 2},
    "meshes": {"m": [["tp", 2]]},
    "tensors": [{"name": "w", "shape": [4, 4], "dtype": "f32",
                 "cuts": [{"dim": 0, "axes": ["tp"]}]},
                {"name": "v", "shape": [4, 4], "dtype": "f32",
                 "cuts": [{"dim": 0, "axes": ["tp"]}]}]})";

void owns_and_moves() {
  ws::Layout empty;
  CHECK(!empty);
  CHECK(empty.rank_count() == 0);
  ws::Layout first = ws::Layout::from_json(two_rows);
  wsync_layout *raw = first.c_ptr();
  ws::Layout second = std::move(first);
  CHECK(!first && second.c_ptr() == raw);
  empty = std::move(second);
  CHECK(empty.rank_count() == 2);
  wsync_layout *given_up = empty.release();
  CHECK(!empty);
  ws::Layout taken(given_up);
  CHECK(taken.tensor_count() == 2 && taken.copy_count() == 1);
  taken.reset();
  CHECK(!taken);
}

template <class F> ws::Status status_of(F &&f) {
  try {
    f();
  } catch (const ws::Error &e) {
    CHECK(std::strlen(e.what()) > 0);
    return e.status();
  }
  return ws::Status::ok;
}

void throws_what_the_library_says() {
  CHECK(status_of([] { ws::Layout::from_json("{"); }) == ws::Status::layout_invalid);
  CHECK(status_of([] { ws::Plan().verify(); }) == ws::Status::invalid_argument);
  CHECK(status_of([] { ws::Plan::from_bytes(std::vector<std::uint8_t>(7)); }) ==
        ws::Status::corrupt);

  ws::ErrorRecord err;
  CHECK(!err && !err.rank());
  const ws::Layout bad = ws::Layout::from_json("{", err);
  CHECK(err && !bad && err.status() == ws::Status::layout_invalid);
  CHECK(std::strcmp(ws::name(err.status()), "LAYOUT_INVALID") == 0);
  const ws::Layout good = ws::Layout::from_json(two_rows, err);
  CHECK(!err && good);
  CHECK(ws::is_transport_lost(ws::Status::aborted));
  CHECK(ws::is_retryable(ws::Status::refused));
}

void describes_and_plans() {
  ws::RankViews views(0);
  const auto tensor = views.add_tensor("w", ws::dtype::bf16, {4, 6});
  const auto buffer = views.add_buffer("b", 48);
  views.add_view(tensor, {0, 0}, {4, 6}, buffer);
  views.add_alias("tied", "w");
  const ws::Layout one = ws::Layout::from_views(views);
  CHECK(one.buffers(0).size() == 1);
  CHECK(one.buffers(0)[0].name == "b" && one.buffers(0)[0].bytes == 48);
  CHECK(!one.buffers(0)[0].side);

  const ws::Layout again = ws::Layout::from_bytes(one.serialize());
  CHECK(again.to_json() == one.to_json());
  CHECK(!one.describe().empty());
  CHECK(one.check().error_count == 0);
  CHECK(one.check(&again).error_count == 0);
  CHECK(ws::Layout::check_json(two_rows).error_count == 0);

  ws::RankViews other(1, 1);
  const auto same = other.add_tensor("w", ws::dtype::bf16, {4, 6});
  other.add_view(same, {0, 0}, {4, 6}, other.add_buffer("b", 48));
  std::vector<ws::Layout> both;
  both.push_back(ws::Layout::from_views(views));
  both.push_back(ws::Layout::from_views(other));
  CHECK(ws::Layout::merge(both).copy_count() == 2);

  const ws::Layout layout = ws::Layout::from_json(two_rows);
  const ws::Plan plan = ws::Plan::create(layout, layout);
  plan.verify();
  CHECK(plan.ranks() == (std::vector<std::uint32_t>{0, 1}));
  CHECK(plan.rank_count() == 2 && plan.step_count() >= 1);
  CHECK(plan.program_info(0).bytes_local == 64);
  CHECK(plan.buffers(1).size() == 4);
  CHECK(plan.buffers(1)[0].side == ws::Side::source);
  CHECK(plan.tensor_last_step(0, "w").has_value());
  CHECK(plan.origin(0, "w", {0, 0}).find("\"hops\"") != std::string::npos);
  ws::PlanOptions layers;
  layers.order = static_cast<std::uint32_t>(ws::Order::layer);
  CHECK(ws::Plan::create(layout, layout, layers).serialize() != plan.serialize());
  const ws::Plan part = plan.select({"w*"}, {"x"});
  CHECK(part.tensor_count() == 1);
  const ws::Fingerprint a = plan.fingerprint();
  const ws::Fingerprint b = ws::Plan::from_bytes(plan.serialize()).fingerprint();
  CHECK(std::memcmp(&a, &b, sizeof a) == 0);
  CHECK(plan.diff(part).find("\"is_equal\":false") != std::string::npos);
  CHECK(plan.rank_ops(0).front() == '[' && plan.report().front() == '{');
}

const char *const deepseek = R"({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128, "intermediate_size": 32,
    "moe_intermediate_size": 8, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
    "num_nextn_predict_layers": 1})";

void makes_layouts_of_models() {
  const ws::Layout whole =
      ws::Layout::from_model(deepseek, "hf", "frozen=model.embed_tokens.*:lm_head.*", 0);
  const ws::Layout engines = ws::Layout::from_model(deepseek, "vllm", "tp=2,replicas=2", 1);
  CHECK(whole.rank_count() == 1 && engines.rank_count() == 4 && engines.copy_count() == 2);
  const std::vector<ws::BufferInfo> buffers = engines.buffers(1);
  const auto head = std::find_if(buffers.begin(), buffers.end(),
                                 [](const ws::BufferInfo &b) { return b.name == "lm_head.weight"; });
  CHECK(head != buffers.end() && head->bytes == 128 / 2 * 16 * 2);
  const ws::Layout uneven = ws::Layout::from_model(deepseek, "vllm", "tp=1,dp=3,ep=on", 0);
  CHECK(uneven.describe().find("8 experts are not divisible by the 3 ranks") != std::string::npos);

  CHECK(status_of([] { ws::Layout::from_model(deepseek, "vllm", "tp=3", 0); }) ==
        ws::Status::layout_invalid);
  ws::ErrorRecord err;
  CHECK(!ws::Layout::from_model(deepseek, "vllm", "tp=0", 0, err));
  CHECK(std::strstr(err.message(), "tp is \"0\"") != nullptr);

  // Of 70 tensors: 12 of a dense layer, 17 of one with experts, 21 of the draft.
  const ws::Plan plan = ws::Plan::create(whole, engines);
  const auto count = [&plan](ws::Selector what) { return plan.select(what).tensor_count(); };
  const std::uint32_t all = plan.tensor_count();
  ws::Selector layers;
  layers.layers = {{0, 2}};
  CHECK(count(layers) == 12 + 17);
  ws::Selector experts;
  experts.experts = {{0, 4}};
  CHECK(count(experts) == 3 * 3);
  ws::Selector draft;
  draft.draft = ws::Choice::only;
  CHECK(count(draft) == 21);
  draft.draft = ws::Choice::without;
  CHECK(count(draft) == all - 21);
  ws::Selector trainable;
  trainable.trainable = ws::Choice::without;
  CHECK(count(trainable) == 2);
  trainable.trainable = ws::Choice::only;
  CHECK(count(trainable) == all - 2);
}

void maps() {
  const std::vector<std::uint32_t> trainers{0, 1, 2, 3};
  const std::vector<std::uint32_t> servers{4, 5};
  ws::MappingOptions options(ws::MappingKind::two_stage);
  options.source_pp = 4;
  options.destination_tp = 2;
  options.source_devices = trainers.data();
  options.source_device_count = trainers.size();
  options.destination_devices = servers.data();
  options.destination_device_count = servers.size();
  const ws::Mapping mapping = ws::Mapping::create(options);
  const auto pairs = mapping.pairs(ws::MappingList::pairs);
  CHECK(pairs.size() == 4 && pairs[1].sender == 1 && pairs[1].receiver == 5);
  CHECK(mapping.pairs(ws::MappingList::forwards).size() == 2);
  CHECK(mapping.pairs(ws::MappingList::routed).empty());
  CHECK(mapping.group_size() == 2 && mapping.regroup_count() == 0);
  CHECK(mapping.regroup_kind() == ws::RegroupKind::none);
  CHECK(mapping.report().find("\"pairs\"") != std::string::npos);
  using Ranks = std::vector<std::uint32_t>;
  CHECK(mapping.sends(ws::MappingList::pairs, 1) == Ranks{5});
  CHECK(mapping.sends(ws::MappingList::forwards, 5) == Ranks{4});
  CHECK((mapping.receives(ws::MappingList::pairs, 4) == Ranks{0, 2}));
  const auto loads = mapping.loads();
  CHECK(loads.size() == 2 && loads[1].rank == 5 && loads[1].pair_count == 2);
  CHECK(mapping.moved().empty());
}

/** Devices of so many ranks on each side. */
struct Devices {
  std::vector<std::uint32_t> source;
  std::vector<std::uint32_t> destination;

  ws::MappingOptions options(wsync_mapping_kind kind) const {
    ws::MappingOptions options;
    options.kind = kind;
    options.source_devices = source.data();
    options.source_device_count = source.size();
    options.destination_devices = destination.data();
    options.destination_device_count = destination.size();
    return options;
  }
};

/** Half of the source is drained: lists say who is left. */
void maps_experts_of_given_ranks() {
  const Devices devices{{0, 1, 2, 3}, {4, 5}};
  const std::vector<std::uint32_t> whole{3, 2}, expert_rows[] = {{3}, {2}}, replica{5, 4};
  const wsync_rank_list expert{whole.data(), whole.size()};
  const wsync_rank_list rest[] = {{expert_rows[0].data(), 1}, {expert_rows[1].data(), 1}};
  const wsync_rank_list served{replica.data(), replica.size()};
  ws::MappingOptions options = devices.options(WSYNC_MAPPING_KIND_EXPERT);
  options.flags = WSYNC_MAPPING_FLAG_VLLM;
  options.source_ep = 2;
  options.destination_tp = 2;
  options.source_ranks = rest;
  options.source_list_count = 2;
  options.expert_source_ranks = &expert;
  options.expert_source_list_count = 1;
  options.destination_ranks = &served;
  options.destination_list_count = 1;
  const ws::Mapping mapping = ws::Mapping::create(options);
  const auto routed = mapping.pairs(ws::MappingList::routed);
  CHECK(routed.size() == 2 && routed[0].sender == 3 && routed[0].receiver == 5);
  CHECK(routed[1].sender == 2 && routed[1].receiver == 4);
  CHECK(mapping.sends(ws::MappingList::pairs, 3).front() == 5);
  CHECK(mapping.sends(ws::MappingList::forwards, 5).front() == 4);
  CHECK(mapping.loads(ws::MappingList::routed)[1].pair_count == 1);
  CHECK(mapping.regroup_kind() == ws::RegroupKind::all_to_all);
  CHECK(mapping.regroup_count() == 1 && mapping.regroup_at(0) == whole);
}

void maps_in_a_single_stage() {
  const Devices devices{{0, 1}, {1, 0}};
  ws::MappingOptions options = devices.options(WSYNC_MAPPING_KIND_SINGLE_STAGE);
  options.source_dp = 2;
  options.replica_count = 2;
  const auto pairs = ws::Mapping::create(options).pairs(ws::MappingList::pairs);
  CHECK(pairs.size() == 2 && pairs[0].sender == 1 && pairs[1].sender == 0);
  options.flags = WSYNC_MAPPING_FLAG_APART;
  const ws::Mapping apart = ws::Mapping::create(options);
  CHECK(apart.pairs(ws::MappingList::pairs)[0].sender == 0);
  CHECK(apart.pairs(ws::MappingList::same_device).empty());
  CHECK(apart.regroup_count() == 2 && apart.regroup_at(1).front() == 1);
}

/** The ranks of one side are view by view, so that sizes and lists are given. */
void plans_in_two_stages() {
  std::vector<ws::Layout> source, destination;
  for (std::uint32_t rank = 0; rank < 3; rank++) {
    ws::RankViews views(rank);
    const auto tensor = views.add_tensor("w", ws::dtype::f32, {4, 6});
    const std::uint64_t lo = rank == 2 ? 2 : 0, hi = rank == 1 ? 2 : 4;
    const auto buffer = views.add_buffer("w", (hi - lo) * 24);
    views.add_view(tensor, {lo, 0}, {hi, 6}, buffer);
    (rank == 0 ? source : destination).push_back(ws::Layout::from_views(views));
  }
  const std::vector<std::uint32_t> trainer{0}, replica{1, 2};
  const wsync_rank_list sources{trainer.data(), 1}, destinations{replica.data(), 2};
  ws::TwoStageOptions two_stage;
  two_stage.source_tp = 1;
  two_stage.destination_tp = 2;
  two_stage.source_ranks = &sources;
  two_stage.source_list_count = 1;
  two_stage.destination_ranks = &destinations;
  two_stage.destination_list_count = 1;
  ws::PlanOptions options;
  options.strategy = WSYNC_STRATEGY_TWO_STAGE;
  options.bucket_count = 1;
  options.two_stage = &two_stage;
  const ws::Plan plan =
      ws::Plan::create(ws::Layout::merge(source), ws::Layout::merge(destination), options);
  plan.verify();
  CHECK(plan.step_count() == 2);
  CHECK(plan.program_info(0).bytes_sent == 96);
  CHECK(plan.program_info(1).bytes_sent == 48);
  CHECK(plan.program_info(2).bytes_sent == 0 && plan.program_info(2).peer_count == 1);
  const auto infos = plan.program_infos({1, 0});
  CHECK(infos.size() == 2 && infos[0].bytes_sent == 48 && infos[1].bytes_sent == 96);
  CHECK(plan.program_infos({}).empty());
}

void one_rank(ws::Transport transport, const ws::Plan &plan,
              ws::Span<const std::vector<std::uint8_t>> greetings) {
  transport.meet(greetings, 60s);
  const std::uint32_t rank = transport.rank();
  ws::Session session = ws::Session::create(transport);
  std::vector<std::vector<float>> memory;
  for (const ws::BufferInfo &info : plan.buffers(rank)) {
    const bool is_source = info.side == ws::Side::source;
    memory.emplace_back(info.bytes / sizeof(float), is_source ? 2.5f : 0.0f);
    session.bind(*info.side, info.name, memory.back().data(), info.bytes);
  }
  const std::uint32_t slot = session.load(plan);
  ws::Request request = ws::Request::create(session, slot);
  CHECK(request.state() == ws::State::idle);
  for (std::uint64_t version = 1; version <= 2; version++) {
    request.submit(ws::RequestOptions(version, ws::RequestFlag::verify));
    CHECK(request.wait(60s));
    CHECK(request.test() && request.wait_ready(0s));
    CHECK(request.outcome().rank == ws::Outcome::complete);
    CHECK(request.outcome().copy == ws::Outcome::complete);
  }
  for (const auto &buffer : memory) {
    for (const float value : buffer) CHECK(value > 2.4f && value < 2.6f);
  }
  CHECK(request.steps_done() == request.step_count());
  CHECK(request.tensor_digest("w") != 0);
  CHECK(request.report().find("\"version\":2") != std::string::npos);
  session.finalize(60s);
  const auto late = status_of([&] { static_cast<void>(ws::Request::create(session, slot)); });
  CHECK(late == ws::Status::invalid_state);
  transport.check();
  transport.finalize(60s);
}

void delivers() {
  const ws::Layout layout = ws::Layout::from_json(two_rows);
  const ws::Plan plan = ws::Plan::create(layout, layout);
  std::vector<ws::Transport> transports;
  std::vector<std::vector<std::uint8_t>> greetings;
  for (std::uint32_t rank = 0; rank < 2; rank++) {
    transports.push_back(ws::Transport::create(ws::TransportKind::loopback, rank, 2));
    greetings.push_back(transports.back().greeting());
  }
  std::vector<std::thread> threads;
  for (ws::Transport &transport : transports) {
    threads.emplace_back(
        [&, t = std::move(transport)]() mutable { one_rank(std::move(t), plan, greetings); });
  }
  for (std::thread &thread : threads) thread.join();
}

void destroys_in_any_order() {
  const ws::Layout layout = ws::Layout::from_json(
      R"({"weightsync_layout": 1, "ranks": {"first": 0, "count": 1},
          "tensors": [{"name": "w", "shape": [4], "dtype": "f32"}]})");
  ws::Plan plan = ws::Plan::create(layout, layout);
  ws::Transport transport = ws::Transport::create(ws::TransportKind::loopback, 0, 1);
  transport.meet({transport.greeting()}, 60s);
  ws::Session session = ws::Session::create(transport);
  float from[4] = {1, 2, 3, 4};
  float to[4] = {};
  session.bind(ws::Side::source, "w", from, sizeof from);
  session.bind(ws::Side::destination, "w", to, sizeof to);
  session.bind(ws::Side::destination, "w", to, sizeof to, ws::Array{ws::dtype::i32, {4}});
  CHECK(status_of([&] { session.load(plan); }) == ws::Status::buffer_mismatch);
  session.bind(ws::Side::destination, "w", to, sizeof to, ws::Array{ws::dtype::f32, {4}, {-4}});
  CHECK(status_of([&] { session.load(plan); }) == ws::Status::buffer_mismatch);
  session.bind(ws::Side::destination, "w", to, sizeof to, ws::Array{ws::dtype::f32, {4}});
  ws::Request request = ws::Request::create(session, session.load(plan));
  transport.reset();
  plan.reset();
  request.prepare();
  CHECK(request.wait_ready(60s));
  request.start();
  CHECK(request.wait());
  CHECK(std::memcmp(from, to, sizeof from) == 0);
  session.abort("the test ends");
  CHECK(status_of([&] { request.prepare(); }) == ws::Status::aborted);
  session.reset();
}

void listens() {
  std::atomic<int> lines{0};
  const ws::LogSink sink([&](ws::LogLevel, std::string_view) { lines++; }, ws::LogLevel::error);
  CHECK(lines >= 0);
}

void says_what_is_loaded() {
  CHECK(ws::header_matches());
  CHECK(ws::abi_version() == WSYNC_ABI_VERSION);
  CHECK(ws::library_version() == WSYNC_VERSION);
  CHECK(std::string_view(ws::library_version_string()).find('.') != std::string_view::npos);
  bool knows_the_log = false;
  for (const wsync_env_info &variable : ws::environment())
    knows_the_log |= std::string_view(variable.name) == "WSYNC_LOG";
  CHECK(knows_the_log);
}

} // namespace

int main() {
  says_what_is_loaded();
  owns_and_moves();
  throws_what_the_library_says();
  describes_and_plans();
  makes_layouts_of_models();
  maps();
  maps_experts_of_given_ranks();
  maps_in_a_single_stage();
  plans_in_two_stages();
  delivers();
  destroys_in_any_order();
  listens();
  std::puts("the C++ binding holds");
  return 0;
}
