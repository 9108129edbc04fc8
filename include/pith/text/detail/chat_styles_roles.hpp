#pragma once

#include <cstddef>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/text/detail/chat_styles.hpp>

// Chat formats that name the role in a mark of its own: Phi-3 and 4 mini, TinyLlama, OLMo 2, Tülu 3, GLM-4, EXAONE 4, Command R7B.
namespace pith { inline namespace v0 { namespace detail {

inline bool is_known_role(std::string_view role) { return role == "system" || role == "user" || role == "assistant"; }

inline void write_phi3_as(ChatWriter& out, const ChatInput& in, bool empty_system) {
  for (const Message& m : in.messages) {
    if (!is_known_role(m.role) || (m.role == "system" && m.content.empty() && !empty_system)) continue;
    out.markup("<|").markup(m.role).markup("|>\n").content(m.content).markup("<|end|>\n");
  }
  out.markup(in.add_generation_prompt ? "<|assistant|>\n" : "<|endoftext|>");
}
inline void write_phi3(ChatWriter& out, const ChatInput& in) { write_phi3_as(out, in, false); }
inline void write_phi3_mini(ChatWriter& out, const ChatInput& in) { write_phi3_as(out, in, true); }
/// Phi-3 medium: each user turn opens an answer, and there is no system text.
inline void write_phi3_medium(ChatWriter& out, const ChatInput& in) {
  for (const Message& m : in.messages) {
    if (m.role == "user") {
      out.markup("<|user|>\n").content(m.content).markup("<|end|>\n<|assistant|>\n");
    } else if (m.role == "assistant") {
      out.content(m.content).markup("<|end|>\n");
    }
  }
}
inline void write_phi4_mini(ChatWriter& out, const ChatInput& in) {
  for (const Message& m : in.messages) out.markup("<|").markup(m.role).markup("|>").content(m.content).markup("<|end|>");
  out.markup(in.add_generation_prompt ? "<|assistant|>" : "<|endoftext|>");
}

inline void write_tinyllama(ChatWriter& out, const ChatInput& in) {
  for (const Message& m : in.messages)
    if (is_known_role(m.role)) out.markup("<|").markup(m.role).markup("|>\n").content(m.content).markup("</s>\n");
  if (in.add_generation_prompt && !in.messages.empty()) out.markup("<|assistant|>\n");
}

/// OLMo 2 and Tülu 3: only the end of an answer is a token.
inline void write_olmo2_turns(ChatWriter& out, const ChatInput& in, std::string_view end) {
  for (std::size_t i = 0; i < in.messages.size(); ++i) {
    const Message& m = in.messages[i];
    if (!is_known_role(m.role)) continue;
    out.markup("<|").markup(m.role).markup("|>\n").content(m.content);
    if (m.role != "assistant") {
      out.markup("\n");
    } else {
      out.markup(end).markup(i + 1 == in.messages.size() ? "" : "\n");
    }
  }
}
inline void write_olmo2(ChatWriter& out, const ChatInput& in) {
  out.markup("<|endoftext|>");
  write_olmo2_turns(out, in, "<|endoftext|>");
  if (in.add_generation_prompt) out.markup("<|assistant|>\n");
}
inline void write_tulu3(ChatWriter& out, const ChatInput& in) {
  write_olmo2_turns(out, in, "<|end_of_text|>");
  if (in.add_generation_prompt && !in.messages.empty()) out.markup("<|assistant|>\n");
}

inline void write_glm4(ChatWriter& out, const ChatInput& in) {
  out.markup("[gMASK]<sop>");
  for (const Message& m : in.messages)
    if (!m.content.empty()) out.markup("<|").markup(m.role).markup("|>\n").content(m.content);
  if (in.add_generation_prompt) out.markup("<|assistant|>\n");
}

/// EXAONE 4: an answer begins with its reasoning, which is empty in all turns before.
inline void write_exaone4(ChatWriter& out, const ChatInput& in) {
  constexpr std::string_view ends = "</think>", no_thought = "<think>\n\n</think>\n\n";
  for (std::size_t i = 0; i < in.messages.size(); ++i) {
    const Message& m = in.messages[i];
    if (!is_known_role(m.role)) in.refuse(i, text("role '", m.role, "', expected system, user or assistant"));
    out.markup("[|").markup(m.role).markup("|]\n");
    std::string_view content = m.content;
    if (m.role == "assistant" && !content.empty()) {
      out.markup(no_thought);
      if (const std::size_t end = content.rfind(ends); end != std::string_view::npos) content = trimmed(content.substr(end + ends.size()));
    }
    out.content(content).markup("[|endofturn|]\n");
  }
  if (in.add_generation_prompt) out.markup("[|assistant|]\n").markup(in.thinking ? "<think>\n" : no_thought);
}

inline void write_command_r7b(ChatWriter& out, const ChatInput& in) {
  in.check_alternation(roles_alternate);
  constexpr std::string_view turn = "<|START_OF_TURN_TOKEN|>", end = "<|END_OF_TURN_TOKEN|>";
  out.markup(turn).markup("<|SYSTEM_TOKEN|>").content(in.system()).markup(end);
  for (std::size_t i = 0; i < in.turns().size(); ++i) {
    const std::string_view content = trimmed(in.turns()[i].content);
    if (i % 2 == 0) {
      out.markup(turn).markup("<|USER_TOKEN|>").content(content).markup(end);
    } else {
      out.markup(turn).markup("<|CHATBOT_TOKEN|><|START_RESPONSE|>").content(content).markup("<|END_RESPONSE|>").markup(end);
    }
  }
  if (in.add_generation_prompt) out.markup(turn).markup("<|CHATBOT_TOKEN|><|START_RESPONSE|>");
}

}}}  // namespace pith::v0::detail
