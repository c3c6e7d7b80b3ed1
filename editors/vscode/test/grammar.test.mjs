// The grammar, run by the engine that editors use. `npm install && npm test`
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";

const require = createRequire(import.meta.url);
const oniguruma = require("vscode-oniguruma");
const { Registry, INITIAL, parseRawGrammar } = require("vscode-textmate");

const wasm = readFileSync(require.resolve("vscode-oniguruma/release/onig.wasm"));
await oniguruma.loadWASM(wasm.buffer.slice(wasm.byteOffset, wasm.byteOffset + wasm.byteLength));
const file = new URL("../syntaxes/plan.tmLanguage.json", import.meta.url);
const registry = new Registry({
  onigLib: Promise.resolve({
    createOnigScanner: (patterns) => new oniguruma.OnigScanner(patterns),
    createOnigString: (text) => new oniguruma.OnigString(text),
  }),
  loadGrammar: async () => parseRawGrammar(readFileSync(file, "utf8"), file.pathname),
});
const grammar = await registry.loadGrammar("source.plan");

/** The tokens of a text with their innermost scope, blanks left out. */
function tokens(text) {
  let state = INITIAL;
  return text.split("\n").flatMap((line) => {
    const found = grammar.tokenizeLine(line, state);
    state = found.ruleStack;
    return found.tokens
      .map((each) => [line.slice(each.startIndex, each.endIndex), each.scopes.at(-1)])
      .filter(([written]) => written.trim());
  });
}

const scope = (text, written) => tokens(text).find(([each]) => each.trim() === written)?.[1];

test("the canonical file", () => {
  const text = '# note\nsubtasks = [\n    "Say \\"hi\\".",  # end\n]\nworkers  = ["gpt", 1]\naccess   = [all]';
  const quoted = "string.quoted.double.plan";
  const opening = ["[", "punctuation.definition.list.begin.plan"];
  const closing = ["]", "punctuation.definition.list.end.plan"];
  const comma = [",", "punctuation.separator.list.plan"];
  const equals = ["=", "keyword.operator.assignment.plan"];
  const label = "variable.other.assignment.plan";
  const comment = "comment.line.number-sign.plan";
  const escape = ['\\"', "constant.character.escape.plan"];
  assert.deepEqual(tokens(text), [
    ["# note", comment],
    ["subtasks", label], equals, opening,
    ['"', quoted], ["Say ", quoted], escape, ["hi", quoted], escape, [".", quoted], ['"', quoted],
    comma, ["# end", comment],
    closing,
    ["workers", label], equals, opening, ['"', quoted], ["gpt", quoted], ['"', quoted], comma,
    ["1", "constant.numeric.plan"], closing,
    ["access", label], equals, opening, ["all", "constant.language.plan"], closing,
  ]);
});

for (const label of [
  "subtasks", "workers", "access", "model_id", "access_list", "**Sub-tasks**", '"worker ids"',
  "`ACCESS LIST`", "Worker_ID",
]) {
  test(`the label ${label}`, () => {
    assert.equal(scope(`${label} = [0]`, label), "variable.other.assignment.plan");
    assert.equal(scope(`{${label}: [0]}`, label), "variable.other.assignment.plan");
  });
}

for (const written of [
  "'it's'", '"""a "b" c"""', "'''a 'b' c'''", "“curly”", "‘it’s’", '"# no comment"', '"a\nb"', '"\\\\"',
]) {
  test(`the string ${JSON.stringify(written)} ends where it should`, () => {
    const text = `subtasks = [${written}]\nworkers = [0]`;
    assert.equal(scope(text, "workers"), "variable.other.assignment.plan");
    assert.equal(scope(text, "0"), "constant.numeric.plan");
    assert.match(tokens(text)[3][1], /^string\.quoted/);
  });
}
