#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include <pith/core/check.hpp>
#include <pith/text/detail/chat_writer.hpp>

// Renders conversations in each published chat format.
namespace pith { inline namespace v0 { namespace detail {

/// Input of a style: a conversation and the format's options.
struct ChatInput {
  std::string_view format;  ///< the format's name, for messages
  std::span<const Message> messages;
  bool add_generation_prompt = true;
  std::string_view date;
  bool thinking = true;

  bool begins_with_system() const { return !messages.empty() && messages.front().role == "system"; }
  /// All messages except a leading system message.
  std::span<const Message> turns() const { return messages.subspan(begins_with_system() ? 1 : 0); }
  std::string_view system() const { return begins_with_system() ? std::string_view(messages.front().content) : std::string_view(); }
  [[noreturn]] void refuse(std::size_t turn, std::string_view what) const {
    raise<FormatError>("pith::ChatFormat ", format, ": message ", turn, ": ", what);
  }
  void check_alternation(std::string_view rule) const {
    const std::size_t skipped = begins_with_system() ? 1 : 0;
    for (std::size_t i = 0; i < turns().size(); ++i)
      if (turns()[i].role != (i % 2 == 0 ? "user" : "assistant")) refuse(skipped + i, text("role '", turns()[i].role, "'; ", rule));
  }
};

inline constexpr std::string_view roles_alternate = "Conversation roles must alternate user/assistant/user/assistant/...";
inline constexpr std::string_view roles_alternate_after_system =
    "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...";

/// Marks of a turn: open, role, middle, content, close.
struct TurnMarks {
  std::string_view open, middle, close;
};
inline constexpr TurnMarks chatml_marks{"<|im_start|>", "\n", "<|im_end|>\n"};
inline constexpr TurnMarks llama3_marks{"<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"};
inline constexpr TurnMarks phi4_marks{"<|im_start|>", "<|im_sep|>", "<|im_end|>"};

inline void write_turn(ChatWriter& out, const TurnMarks& marks, std::string_view role, std::string_view content) {
  out.markup(marks.open).markup(role).markup(marks.middle).content(content).markup(marks.close);
}
inline void write_turns(ChatWriter& out, const TurnMarks& marks, const ChatInput& in) {
  for (const Message& m : in.messages) write_turn(out, marks, m.role, m.content);
  if (in.add_generation_prompt) out.markup(marks.open).markup("assistant").markup(marks.middle);
}

inline void write_chatml(ChatWriter& out, const ChatInput& in) { write_turns(out, chatml_marks, in); }
inline void write_chatml_with(ChatWriter& out, const ChatInput& in, std::string_view default_system) {
  if (!in.begins_with_system()) out.markup("<|im_start|>system\n").markup(default_system).markup("<|im_end|>\n");
  write_turns(out, chatml_marks, in);
}
inline void write_qwen2(ChatWriter& out, const ChatInput& in) { write_chatml_with(out, in, "You are a helpful assistant."); }
inline void write_qwen2_5(ChatWriter& out, const ChatInput& in) {
  write_chatml_with(out, in, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
}
inline void write_smollm2(ChatWriter& out, const ChatInput& in) {
  write_chatml_with(out, in, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
}

/// Qwen3: removes the reasoning from all turns before the last query.
inline void write_qwen3(ChatWriter& out, const ChatInput& in) {
  std::size_t last_query = in.messages.empty() ? 0 : in.messages.size() - 1;
  for (std::size_t i = in.messages.size(); i-- > 0;) {
    const std::string_view c = in.messages[i].content;
    if (in.messages[i].role != "user" || (c.starts_with("<tool_response>") && c.ends_with("</tool_response>"))) continue;
    last_query = i;
    break;
  }
  for (std::size_t i = 0; i < in.messages.size(); ++i) {
    const Message& m = in.messages[i];
    if (m.role != "assistant") {
      write_turn(out, chatml_marks, m.role, m.content);
      continue;
    }
    constexpr std::string_view begins = "<think>", ends = "</think>";
    std::string_view content = m.content, reasoning;
    if (const std::size_t end = content.find(ends); end != std::string_view::npos) {
      reasoning = without_trailing_newlines(content.substr(0, end));
      if (const std::size_t begin = reasoning.rfind(begins); begin != std::string_view::npos)
        reasoning.remove_prefix(begin + begins.size());
      reasoning = without_leading_newlines(reasoning);
      content = without_leading_newlines(content.substr(content.rfind(ends) + ends.size()));
    }
    out.markup("<|im_start|>assistant\n");
    if (i > last_query && (i + 1 == in.messages.size() || !reasoning.empty())) {
      const std::string_view bare = without_trailing_newlines(without_leading_newlines(reasoning));
      out.markup("<think>\n").content(bare).markup("\n</think>\n\n");
      content = without_leading_newlines(content);
    }
    out.content(content).markup("<|im_end|>\n");
  }
  if (in.add_generation_prompt) out.markup("<|im_start|>assistant\n").markup(in.thinking ? "" : "<think>\n\n</think>\n\n");
}

inline constexpr std::string_view smollm3_default_thinking =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face. Your role as an assistant involves thoroughly "
    "exploring questions through a systematic thinking process before providing the final precise and accurate solutions. "
    "This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, reassessment, reflection, "
    "backtracking, and iteration to develop well-considered thinking process. Please structure your response into two main "
    "sections: Thought and Solution using the specified format: <think> Thought section </think> Solution section. In the "
    "Thought section, detail your reasoning process in steps. Each step should include detailed considerations such as "
    "analysing questions, summarizing relevant findings, brainstorming new ideas, verifying the accuracy of the current "
    "steps, refining any errors, and revisiting previous steps. In the Solution section, based on various attempts, "
    "explorations, and reflections from the Thought section, systematically present the final solution that you deem "
    "correct. The Solution section should be logical, accurate, and concise and detail necessary steps needed to reach the "
    "conclusion.";
inline constexpr std::string_view smollm3_default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face.";

inline std::string without(std::string_view s, std::string_view part) { return replaced(s, part, ""); }

/// SmolLM3: always has a system text, with a flag that switches reasoning. As published, it has the date and the turn is not closed.
inline void write_smollm3_as(ChatWriter& out, const ChatInput& in, bool published) {
  constexpr std::string_view override_flag = "/system_override", no_think = "/no_think", think = "/think";
  const std::string_view system = in.system();
  const bool thinking = system.find(no_think) != std::string_view::npos ? false
                        : system.find(think) != std::string_view::npos  ? true
                                                                        : in.thinking;
  const std::string own(trimmed_right(without(without(system, no_think), think)));
  out.markup("<|im_start|>system\n");
  if (own.find(override_flag) != std::string::npos) {
    out.content(trimmed_right(without(own, override_flag))).markup("<|im_end|>\n");
  } else {
    out.markup("## Metadata\n\nKnowledge Cutoff Date: June 2025\n");
    if (published) out.markup("Today Date: ").markup(in.date).markup("\n");
    out.markup("Reasoning Mode: ").markup(thinking ? think : no_think).markup("\n\n## Custom Instructions\n\n");
    if (!own.empty()) {
      out.content(own);
    } else {
      out.markup(thinking ? smollm3_default_thinking : smollm3_default);
    }
    out.markup(published ? "\n\n" : "\n\n<|im_end|>\n");
  }
  constexpr std::string_view no_thought = "<think>\n\n</think>\n";
  for (const Message& m : in.messages) {
    if (m.role == "user") {
      write_turn(out, chatml_marks, m.role, m.content);
    } else if (m.role == "assistant") {
      out.markup("<|im_start|>assistant\n").markup(thinking ? "" : no_thought);
      out.content(without_leading_newlines(m.content)).markup("<|im_end|>\n");
    }
  }
  if (in.add_generation_prompt) out.markup("<|im_start|>assistant\n").markup(thinking ? "" : no_thought);
}
inline void write_smollm3(ChatWriter& out, const ChatInput& in) { write_smollm3_as(out, in, true); }
inline void write_smollm3_unsloth(ChatWriter& out, const ChatInput& in) { write_smollm3_as(out, in, false); }

inline void write_llama3(ChatWriter& out, const ChatInput& in) {
  out.markup("<|begin_of_text|>");
  for (const Message& m : in.messages) write_turn(out, llama3_marks, m.role, trimmed(m.content));
  if (in.add_generation_prompt) out.markup("<|start_header_id|>assistant<|end_header_id|>\n\n");
}
/// Llama 3.1 and 3.2: always have a system turn with the date.
inline void write_llama3_1(ChatWriter& out, const ChatInput& in) {
  out.markup("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ");
  out.markup(in.date).markup("\n\n").content(trimmed(in.system())).markup("<|eot_id|>");
  for (const Message& m : in.turns()) write_turn(out, llama3_marks, m.role, trimmed(m.content));
  if (in.add_generation_prompt) out.markup("<|start_header_id|>assistant<|end_header_id|>\n\n");
}

inline void write_gemma(ChatWriter& out, const ChatInput& in) {
  in.check_alternation(roles_alternate);
  out.markup("<bos>");
  for (std::size_t i = 0; i < in.turns().size(); ++i) {
    out.markup(i % 2 == 0 ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
    if (i == 0 && in.begins_with_system()) out.content(in.system()).markup("\n\n");
    out.content(trimmed(in.turns()[i].content)).markup("<end_of_turn>\n");
  }
  if (in.add_generation_prompt) out.markup("<start_of_turn>model\n");
}
inline void write_gemma2(ChatWriter& out, const ChatInput& in) {
  if (in.begins_with_system()) in.refuse(0, "System role not supported");
  write_gemma(out, in);
}

inline void write_phi4(ChatWriter& out, const ChatInput& in) { write_turns(out, phi4_marks, in); }
/// Phi-4 as first published: each user turn opens an answer.
inline void write_phi4_first(ChatWriter& out, const ChatInput& in) {
  for (const Message& m : in.messages) {
    if (m.role == "assistant") {
      out.content(m.content).markup("<|im_end|>");
    } else if (m.role == "user" || m.role == "system") {
      write_turn(out, phi4_marks, m.role, m.content);
      if (m.role == "user") out.markup("<|im_start|>assistant<|im_sep|>");
    }
  }
}

}}}  // namespace pith::v0::detail
