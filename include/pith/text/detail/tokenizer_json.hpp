#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <pith/core/check.hpp>
#include <pith/io/detail/json.hpp>
#include <pith/io/detail/json_parser.hpp>
#include <pith/io/detail/text.hpp>
#include <pith/text/detail/json_component.hpp>
#include <pith/text/detail/tokenizer_parts.hpp>
#include <pith/text/detail/tokenizer_sax.hpp>

// Reads tokenizer.json.
namespace pith { inline namespace v0 { namespace detail {

inline Normalizer normalizer_of(const Component& all) {
  std::vector<Normalizer::Step> steps;
  all.flatten("normalizers", [&](const Component& c) {
    const std::string type = c.type();
    using Kind = Normalizer::Step::Kind;
    if (type == "NFC") {
      steps.push_back({Kind::nfc});
    } else if (type == "Prepend") {
      steps.push_back({Kind::prepend, {}, c.string("prepend")});
    } else if (type == "Replace") {
      std::string from = c.pattern();
      steps.push_back({Kind::replace, std::move(from), c.string("content")});
    } else {
      c.unsupported(text("is ", in_quotes(type), ": NFC, Prepend, Replace and Sequence are known"));
    }
  });
  return Normalizer(std::move(steps));
}

/// When text gets a leading space: `prepend_scheme`, or `add_prefix_space` in older files.
inline PrependScheme prepend_scheme_of(const Component& c) {
  const bool old_form = c.find("add_prefix_space") != nullptr, adds = c.boolean("add_prefix_space", true);
  if (c.find("prepend_scheme") == nullptr) return adds ? PrependScheme::always : PrependScheme::never;
  const std::string scheme = c.string("prepend_scheme");
  if (scheme != "always" && scheme != "first" && scheme != "never")
    c.unsupported(text("has prepend_scheme ", in_quotes(scheme), ": always, first and never are known"));
  if (old_form && !adds && scheme != "never")
    c.refuse(text("has add_prefix_space false and prepend_scheme '", scheme, "', which disagree"));
  return scheme == "always" ? PrependScheme::always : scheme == "first" ? PrependScheme::first : PrependScheme::never;
}

inline PreTokenizer::Step split_of(const Component& c) {
  std::string regex;
  const std::string plain = c.pattern(&regex);
  const std::string behavior = c.string("behavior");
  const bool inverted = c.boolean("invert", false);
  if (!plain.empty()) {
    if (plain == " " && behavior == "MergedWithPrevious" && !inverted) return {.kind = PreTokenizer::Step::Kind::split_spaces};
    c.unsupported(text("is a Split at ", in_quotes(plain), ": only ' ' with behavior MergedWithPrevious is known"));
  }
  const auto pattern = split_pattern(regex);
  if (!pattern)
    c.unsupported(
        text("is a Split with an unknown pattern \"", regex, "\": those of GPT-2, Qwen2, Llama 3, GPT-4o and Mistral Nemo are known"));
  // Every character belongs to a match, so keeping only the matches keeps everything.
  if (!(behavior == "Isolated" && !inverted) && !(behavior == "Removed" && inverted))
    c.unsupported(text("is a Split with behavior '", behavior, "' and invert ", inverted ? "true" : "false",
                       ": Isolated with false and Removed with true are known"));
  return {.kind = PreTokenizer::Step::Kind::split, .pattern = *pattern};
}

inline PreTokenizer pre_tokenizer_of(const Component& all) {
  using Kind = PreTokenizer::Step::Kind;
  std::vector<PreTokenizer::Step> steps;
  all.flatten("pretokenizers", [&](const Component& c) {
    const std::string type = c.type();
    if (!steps.empty() && steps.back().kind == Kind::byte_level) c.unsupported("stands behind ByteLevel, which must be the last step");
    if (type == "ByteLevel") {
      steps.push_back(
          {.kind = Kind::byte_level, .add_prefix_space = c.boolean("add_prefix_space", true), .use_regex = c.boolean("use_regex", true)});
    } else if (type == "Split") {
      steps.push_back(split_of(c));
    } else if (type == "Digits") {
      steps.push_back({.kind = Kind::digits, .one_by_one = c.boolean("individual_digits", false)});
    } else if (type == "Metaspace") {
      steps.push_back({.kind = Kind::metaspace,
                       .replacement = c.character("replacement"),
                       .prepend_scheme = prepend_scheme_of(c),
                       .cut = c.boolean("split", true)});
    } else {
      c.unsupported(text("is ", in_quotes(type), ": ByteLevel, Split, Digits, Metaspace and Sequence are known"));
    }
  });
  return PreTokenizer(std::move(steps));
}

inline TokenDecoder decoder_of(const Component& all) {
  using Kind = TokenDecoder::Step::Kind;
  const std::string type = all.type();
  if (type == "ByteLevel") return {.kind = TokenDecoder::Kind::byte_level};
  if (type == "Metaspace")
    return {.kind = TokenDecoder::Kind::metaspace, .replacement = all.character("replacement"), .prepend_scheme = prepend_scheme_of(all)};
  TokenDecoder decoder{.kind = TokenDecoder::Kind::chain};
  bool fused = false, bytes = false;
  if (type != "Sequence") all.unsupported(text("is ", in_quotes(type), ": ByteLevel, Metaspace and Sequence are known"));
  all.flatten("decoders", [&](const Component& c) {
    const std::string step = c.type();
    if (fused && step != "Strip") c.unsupported(text("is ", in_quotes(step), " behind Fuse, where only Strip is known"));
    if (step == "Replace") {
      std::string from = c.pattern();
      decoder.steps.push_back({.kind = Kind::replace, .from = std::move(from), .to = c.string("content")});
    } else if (step == "ByteFallback") {
      if (std::exchange(bytes, true)) c.unsupported("is a second ByteFallback");
      decoder.steps.push_back({.kind = Kind::byte_fallback});
    } else if (step == "Fuse") {
      fused = true;
      decoder.steps.push_back({.kind = Kind::fuse});
    } else if (step == "Strip") {
      if (c.count("stop", 0) != 0) c.unsupported("strips the end of tokens ('stop'), expected 0");
      decoder.steps.push_back({.kind = Kind::strip, .content = c.character("content"), .start = c.count("start", 0)});
    } else {
      c.unsupported(text("is ", in_quotes(step), ": Replace, ByteFallback, Fuse and Strip are known"));
    }
  });
  return decoder;
}

/// Adds the tokens of a TemplateProcessing around those of earlier ones.
inline void add_template(const Component& c, TokenizerParts& parts) {
  const Json *single = c.find("single"), *special = c.find("special_tokens");
  if (single == nullptr || !single->is_array()) c.refuse("has no list 'single'");
  std::vector<Token> before, after;
  int texts = 0;
  for (const Json& item : *single) {
    if (item.contains("Sequence") && !item.contains("SpecialToken")) {
      ++texts;
      continue;
    }
    const Json* named = item.find("SpecialToken");
    const Json* name = named == nullptr ? nullptr : named->find("id");
    if (name == nullptr || !name->is_string()) c.refuse(text("has ", item.dump(), " in 'single', expected a SpecialToken or a Sequence"));
    const std::string_view spelled = name->get<std::string_view>();
    const Json* entry = special == nullptr ? nullptr : special->find(spelled);
    const Json* ids = entry == nullptr ? nullptr : entry->find("ids");
    if (ids == nullptr || !ids->is_array()) c.refuse(text("adds ", in_quotes(spelled), ", for which its special_tokens list no ids"));
    for (const Json& id : *ids) {
      const double number = id.is_number() ? id.get<double>() : -1;
      if (!(number >= 0 && number < static_cast<double>(parts.id_limit)) || !parts.token(static_cast<Token>(number)))
        c.refuse(text("gives ", in_quotes(spelled), " the id ", id.dump(), ", which no token has"));
      (texts == 0 ? before : after).push_back(static_cast<Token>(number));
    }
  }
  if (texts != 1) c.unsupported(text("has the text ", texts, " times in 'single', expected once"));
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
}

/// Sorts added tokens by id and checks them against the model's vocabulary.
inline std::vector<AddedToken> checked_added(std::vector<AddedToken> tokens, const Bpe& model, std::string_view file) {
  std::erase_if(tokens, [](const AddedToken& t) { return t.content.empty(); });
  std::stable_sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  std::map<std::string_view, Token> ids;
  std::vector<AddedToken> out;
  for (AddedToken& t : tokens) {
    const auto refuse = [&](std::string_view what) {
      raise<FormatError>("pith: ", in_quotes(file), ": added token ", in_quotes(t.content), " of id ", t.id, " ", what);
    };
    if (const std::uint32_t id = model.find(t.content); id != no_id && id != static_cast<std::uint32_t>(t.id))
      refuse(text("is in model.vocab under id ", id));
    if (model.has(static_cast<std::uint32_t>(t.id)) && model.find(t.content) == no_id)
      refuse(text("takes the id of ", in_quotes(model.token(static_cast<std::uint32_t>(t.id))), " in model.vocab"));
    if (!out.empty() && out.back().id == t.id) {
      if (out.back().content != t.content) refuse(text("has the id of added token ", in_quotes(out.back().content)));
      continue;
    }
    out.push_back(std::move(t));
  }
  for (const AddedToken& t : out)
    if (const auto [at, fresh] = ids.emplace(t.content, t.id); !fresh)
      raise<FormatError>("pith: ", in_quotes(file), ": added token ", in_quotes(t.content), " has ids ", at->second, " and ", t.id);
  return out;
}

inline void add_splitters(TokenizerParts& parts) {
  std::vector<const AddedToken*> raw, normalized;
  std::vector<std::string> raw_patterns, normalized_patterns;
  for (const AddedToken& t : parts.added) {
    std::string pattern = t.normalized ? parts.normalizer(t.content) : t.content;
    if (pattern.empty()) continue;
    (t.normalized ? normalized : raw).push_back(&t);
    (t.normalized ? normalized_patterns : raw_patterns).push_back(std::move(pattern));
  }
  parts.raw = AddedTokenSplitter(std::move(raw), raw_patterns);
  parts.normalized = AddedTokenSplitter(std::move(normalized), normalized_patterns);
}

/// Reads the model's object of tokenizer.json, without its lists.
inline void read_model(const Component& model, TokenizerSax& sax) {
  if (const Json* type = model.find("type"); type != nullptr && *type != "BPE")
    model.unsupported(text("is ", type->is_string() ? in_quotes(type->get<std::string_view>()) : type->dump(), ": BPE is known"));
  if (!sax.has_vocab) model.refuse("has no object 'vocab'");
  if (!sax.has_merges) model.refuse("has no list 'merges'");
  if (const Json* dropout = model.find("dropout"); dropout != nullptr && !(dropout->is_number() && dropout->get<double>() == 0))
    model.unsupported(text("has dropout ", dropout->dump(), ", which makes ids random; expected null or 0"));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const Json* value = model.find(key); value != nullptr && *value != "")
      model.unsupported(text("has '", key, "' ", value->dump(), ", expected null or \"\""));
  if (model.find("unk_token") != nullptr) sax.bpe.unk_token = model.string("unk_token");
  sax.bpe.byte_fallback = model.boolean("byte_fallback", false);
  sax.bpe.fuse_unk = model.boolean("fuse_unk", false);
  sax.bpe.ignore_merges = model.boolean("ignore_merges", false);
}

/// Reads the text of a tokenizer.json. `more`: added tokens named by another file; this file's take precedence.
///
/// Throws   FormatError, UnsupportedError naming the file and the place in it
inline TokenizerParts read_tokenizer_json(std::string_view json, const std::string& file, std::vector<AddedToken> more = {}) {
  refuse_lfs_pointer(json, file);
  TokenizerSax sax(json, file);
  read_events(json.data(), json.data() + json.size(), sax);
  const JsonDocument rest = parse_json(sax.rest, file);
  const auto component = [&](const char* key) -> std::optional<Component> {
    const Json* at = rest.root().find(key);
    if (at == nullptr || at->is_null()) return std::nullopt;
    return Component(file, *at, key);
  };
  if (const Json* version = rest.root().find("version"); version != nullptr && *version != "1.0")
    raise<UnsupportedError>("pith: ", in_quotes(file), ": version is ", version->dump(), ", expected \"1.0\"");
  const auto model = component("model");
  if (!model) raise<FormatError>("pith: ", in_quotes(file), ": the object 'model' is missing");
  read_model(*model, sax);
  const auto normalizer = component("normalizer"), pre = component("pre_tokenizer"), decoder = component("decoder");
  PreTokenizer pre_tokenizer = pre ? pre_tokenizer_of(*pre) : PreTokenizer();
  const bool byte_level = pre_tokenizer.byte_level();
  TokenizerParts parts{.file = file,
                       .normalizer = normalizer ? normalizer_of(*normalizer) : Normalizer(),
                       .pre_tokenizer = std::move(pre_tokenizer),
                       .model = Bpe(sax.bpe, byte_level, file),
                       .decoder = decoder ? decoder_of(*decoder) : TokenDecoder()};
  std::set<std::string_view> known;
  for (const AddedToken& t : sax.added) known.insert(t.content);
  std::erase_if(more, [&](const AddedToken& t) { return known.contains(t.content); });
  sax.added.insert(sax.added.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  parts.added = checked_added(std::move(sax.added), parts.model, file);
  add_splitters(parts);
  parts.id_limit = (std::max)(parts.model.id_limit(), parts.added.empty() ? 0 : static_cast<std::size_t>(parts.added.back().id) + 1);
  if (const auto post = component("post_processor"))
    post->flatten("processors", [&](const Component& c) {
      const std::string type = c.type();
      if (type == "TemplateProcessing") {
        add_template(c, parts);
      } else if (type != "ByteLevel") {  // ByteLevel changes only offsets
        c.unsupported(text("is ", in_quotes(type), ": ByteLevel, TemplateProcessing and Sequence are known"));
      }
    });
  return parts;
}

}}}  // namespace pith::v0::detail
