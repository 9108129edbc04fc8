#pragma once

#include <cstddef>
#include <string_view>

#include <pith/text/detail/chat_styles.hpp>

// Chat formats of Granite.
namespace pith { inline namespace v0 { namespace detail {

inline constexpr TurnMarks granite_marks{"<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n"};

inline void write_granite3_0(ChatWriter& out, const ChatInput& in) { write_turns(out, granite_marks, in); }
/// Granite 3.1 and 3.2: as 3.3 but for the lines of the system text; no turn, no answer.
inline void write_granite3_1(ChatWriter& out, const ChatInput& in) {
  if (in.begins_with_system()) {
    write_turn(out, granite_marks, "system", in.system());
  } else {
    out.markup("<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\nToday's Date: ").markup(in.date);
    out.markup(".\nYou are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n");
  }
  ChatInput turns = in;
  turns.messages = in.turns();
  turns.add_generation_prompt = in.add_generation_prompt && !in.turns().empty();
  write_turns(out, granite_marks, turns);
}
inline void write_granite3_3(ChatWriter& out, const ChatInput& in) {
  if (!in.begins_with_system()) {
    out.markup("<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024. Today's Date: ").markup(in.date);
    out.markup(". You are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n");
  }
  write_turns(out, granite_marks, in);
}
/// Granite 4: an empty system text counts as none; the nano models have a text of their own instead.
inline void write_granite4_as(ChatWriter& out, const ChatInput& in, std::string_view otherwise) {
  if (!in.system().empty()) {
    write_turn(out, granite_marks, "system", in.system());
  } else if (!otherwise.empty()) {
    out.markup("<|start_of_role|>system<|end_of_role|>").markup(otherwise).markup("<|end_of_text|>\n");
  }
  for (std::size_t i = in.begins_with_system() ? 1 : 0; i < in.messages.size(); ++i) {
    const Message& m = in.messages[i];
    if (m.role == "tool") in.refuse(i, "role 'tool', expected system, user or assistant");
    if (m.role == "system" || m.role == "user" || m.role == "assistant") write_turn(out, granite_marks, m.role, m.content);
  }
  if (in.add_generation_prompt) out.markup("<|start_of_role|>assistant<|end_of_role|>");
}
inline void write_granite4(ChatWriter& out, const ChatInput& in) { write_granite4_as(out, in, {}); }
inline void write_granite4_nano(ChatWriter& out, const ChatInput& in) {
  write_granite4_as(out, in, "You are a helpful assistant. Please ensure responses are professional, accurate, and safe.");
}

}}}  // namespace pith::v0::detail
