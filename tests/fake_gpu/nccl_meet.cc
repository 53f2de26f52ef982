// How ranks find each other.

#include "nccl_comm.h"

#include <algorithm>
#include <cstring>

namespace fake_nccl {
namespace {

/// What the real one refuses when the ranks of a communicator meet.
Result judge(const std::vector<Card> &cards) {
  for (const Card &a : cards)
    for (const Card &b : cards) {
      if (a.version != b.version) {
        say("Mismatched NCCL version detected : rank %d has %d, rank %d has %d", a.rank, a.version,
            b.rank, b.version);
        return INVALID_USAGE;
      }
      bool is_same = a.rank != b.rank && a.device == b.device && strcmp(a.host, b.host) == 0;
      if (is_same && !(a.shares_gpu && b.shares_gpu)) {
        say("Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", a.rank, b.rank,
            a.device);
        return INVALID_USAGE;
      }
    }
  return SUCCESS;
}

/// Collects the cards of all ranks, and gives all cards to each.
void serve(Socket listener) {
  static const std::atomic<bool> never{false};
  std::vector<Socket> ranks;
  std::vector<Card> cards;
  size_t expected = 1;
  while (ranks.size() < expected) {
    Socket one = accept_from(listener, never);
    Card card;
    if (!receive_all(one.fd, &card, sizeof card, never))
      continue;
    expected = static_cast<size_t>(card.count);
    cards.push_back(card);
    ranks.push_back(std::move(one));
  }
  std::sort(cards.begin(), cards.end(), [](auto &a, auto &b) { return a.rank < b.rank; });
  for (Socket &one : ranks)
    send_all(one.fd, cards.data(), cards.size() * sizeof(Card), never);
}

} // namespace

std::string open_root() {
  std::string name = fresh_name();
  std::thread([listener = listen_at(name)]() mutable { serve(std::move(listener)); }).detach();
  return name;
}

Result Comm::meet(const std::string &root, Card card) {
  std::string name = fresh_name();
  Socket listener = listen_at(name);
  strncpy(card.listen, name.c_str(), sizeof card.listen - 1);
  Socket socket = connect_to(root, stop);
  std::vector<Card> cards(static_cast<size_t>(count));
  if (!socket.is_open() || !send_all(socket.fd, &card, sizeof card, stop) ||
      !receive_all(socket.fd, cards.data(), cards.size() * sizeof(Card), stop)) {
    say("the root of the communicator is gone");
    return REMOTE_ERROR;
  }
  if (Result result = judge(cards); result != SUCCESS)
    return result;
  return join(cards, listener);
}

Result Comm::make_child(Comm &child, const std::vector<int> &participants, Card card) {
  std::string name = fresh_name();
  Socket listener = listen_at(name);
  strncpy(card.listen, name.c_str(), sizeof card.listen - 1);
  // The first of them collects the cards and gives them to all.
  std::vector<Card> cards(participants.size());
  auto await = [&](int peer) {
    std::unique_lock guard(lock);
    auto &meetings = peers[static_cast<size_t>(peer)]->meetings;
    changed.wait(guard, [&] { return !meetings.empty() || child.stop; });
    if (child.stop)
      return std::vector<char>();
    auto bytes = std::move(meetings.front());
    meetings.pop_front();
    return bytes;
  };
  if (rank == participants[0]) {
    cards[0] = card;
    for (size_t i = 1; i < participants.size(); i++) {
      auto bytes = await(participants[i]);
      if (bytes.size() != sizeof(Card))
        return REMOTE_ERROR;
      memcpy(&cards[i], bytes.data(), sizeof(Card));
    }
    for (size_t i = 1; i < participants.size(); i++)
      post(participants[i], MEET, cards.data(), cards.size() * sizeof(Card));
  } else {
    post(participants[0], MEET, &card, sizeof card);
    auto bytes = await(participants[0]);
    if (bytes.size() != cards.size() * sizeof(Card))
      return REMOTE_ERROR;
    memcpy(cards.data(), bytes.data(), bytes.size());
  }
  if (card.color < 0)
    return SUCCESS;
  std::erase_if(cards, [&](const Card &c) { return c.color != card.color; });
  std::stable_sort(cards.begin(), cards.end(), [](auto &a, auto &b) {
    return a.key != b.key ? a.key < b.key : a.rank < b.rank;
  });
  for (size_t i = 0; i < cards.size(); i++) {
    if (cards[i].rank == card.rank)
      child.rank = static_cast<int>(i);
    cards[i].rank = static_cast<int>(i);
  }
  child.count = static_cast<int>(cards.size());
  return child.join(cards, listener);
}

/// Connects to the lower ranks, is connected to by the higher ones.
Result Comm::join(const std::vector<Card> &cards, const Socket &listener) {
  peers.clear();
  for (int i = 0; i < count; i++)
    peers.push_back(std::make_unique<Peer>());
  for (int i = 0; i < rank; i++) {
    Socket socket = connect_to(cards[static_cast<size_t>(i)].listen, stop);
    if (!socket.is_open() || !send_all(socket.fd, &rank, sizeof rank, stop))
      return REMOTE_ERROR;
    peers[static_cast<size_t>(i)]->socket = std::move(socket);
  }
  for (int i = rank + 1; i < count; i++) {
    Socket socket = accept_from(listener, stop);
    int from;
    if (!socket.is_open() || !receive_all(socket.fd, &from, sizeof from, stop))
      return REMOTE_ERROR;
    peers[static_cast<size_t>(from)]->socket = std::move(socket);
  }
  reader = std::thread([this] { listen_to_peers(); });
  return SUCCESS;
}

} // namespace fake_nccl
