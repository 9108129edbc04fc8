#pragma once

#include <cstddef>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/text/detail/chat_styles.hpp>

// Chat formats with [INST]: Llama 2, Mistral.
namespace pith { inline namespace v0 { namespace detail {

inline void write_llama2(ChatWriter& out, const ChatInput& in) {
  in.check_alternation(roles_alternate);
  for (std::size_t i = 0; i < in.turns().size(); ++i) {
    const std::string_view content = in.turns()[i].content;
    if (i % 2 != 0) {
      out.markup(" ").content(trimmed(content)).markup(" </s>");
      continue;
    }
    out.markup("<s>[INST] ");
    if (i == 0 && in.begins_with_system()) {
      out.markup("<<SYS>>\n").content(in.system()).markup("\n<</SYS>>\n\n").content(trimmed_right(content));
    } else {
      out.content(trimmed(content));
    }
    out.markup(" [/INST]");
  }
}

/// Marks of Mistral's [INST] formats, which differ in spaces and in the turn that has the system text.
struct MistralMarks {
  std::string_view open, close, answer;
  bool trims_answer, system_last;
};
inline void write_mistral(ChatWriter& out, const ChatInput& in, const MistralMarks& marks,
                          std::string_view rule = roles_alternate_after_system) {
  in.check_alternation(rule);
  out.markup("<s>");
  const std::size_t carrier = marks.system_last ? in.turns().size() - 1 : 0;
  for (std::size_t i = 0; i < in.turns().size(); ++i) {
    const std::string_view content = in.turns()[i].content;
    if (i % 2 != 0) {
      out.markup(marks.answer).content(marks.trims_answer ? trimmed(content) : content).markup("</s>");
      continue;
    }
    out.markup(marks.open);
    if (i == carrier && in.begins_with_system()) out.content(in.system()).markup("\n\n");
    out.content(content).markup(marks.close);
  }
}
inline void write_mistral_v1(ChatWriter& out, const ChatInput& in) { write_mistral(out, in, {" [INST] ", " [/INST]", " ", false, false}); }
inline void write_mistral_v1_old(ChatWriter& out, const ChatInput& in) {
  if (in.begins_with_system()) in.refuse(0, text("role 'system'; ", roles_alternate));
  write_mistral(out, in, {"[INST] ", " [/INST]", "", false, false}, roles_alternate);
}
inline void write_mistral_v3(ChatWriter& out, const ChatInput& in) { write_mistral(out, in, {"[INST] ", "[/INST]", " ", true, true}); }
inline void write_mistral_nemo(ChatWriter& out, const ChatInput& in) { write_mistral(out, in, {"[INST]", "[/INST]", "", false, true}); }
inline void write_mistral_v7_as(ChatWriter& out, const ChatInput& in, std::string_view space) {
  out.markup("<s>");
  for (std::size_t i = 0; i < in.messages.size(); ++i) {
    const Message& m = in.messages[i];
    if (m.role == "system") {
      out.markup("[SYSTEM_PROMPT]").markup(space).content(m.content).markup("[/SYSTEM_PROMPT]");
    } else if (m.role == "user") {
      out.markup("[INST]").markup(space).content(m.content).markup("[/INST]");
    } else if (m.role == "assistant") {
      out.markup(space).content(m.content).markup("</s>");
    } else {
      in.refuse(i, text("role '", m.role, "', expected system, user or assistant"));
    }
  }
}
inline void write_mistral_v7(ChatWriter& out, const ChatInput& in) { write_mistral_v7_as(out, in, " "); }
inline void write_mistral_v7_tekken(ChatWriter& out, const ChatInput& in) { write_mistral_v7_as(out, in, ""); }

}}}  // namespace pith::v0::detail
