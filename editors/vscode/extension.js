// Starts `conductor lsp` and connects the editor to it.
"use strict";

const vscode = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

async function start() {
  const settings = vscode.workspace.getConfiguration("conductor");
  const command = settings.get("command") || "conductor";
  const pool = settings.get("pool");
  const args = pool ? ["lsp", "--pool", pool] : ["lsp"];
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri;
  const cwd = folder?.scheme === "file" ? folder.fsPath : undefined;
  const server = { command, args, options: { cwd } };
  client = new LanguageClient("conductor", "Conductor plans", server, {
    documentSelector: [{ language: "plan" }],
  });
  try {
    await client.start();
  } catch (error) {
    client = undefined;
    vscode.window.showErrorMessage(
      `\`${command} lsp\` did not start: ${error.message ?? error}; ` +
        "pip install 'conductor-lm[lsp]', or say in conductor.command where it is",
    );
  }
}

async function deactivate() {
  const running = client;
  client = undefined;
  await running?.stop();
}

async function activate(context) {
  context.subscriptions.push(
    vscode.workspace.onDidChangeConfiguration(async (change) => {
      if (change.affectsConfiguration("conductor")) {
        await deactivate();
        await start();
      }
    }),
  );
  await start();
}

module.exports = { activate, deactivate };
