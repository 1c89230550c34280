// Code: results, charts, errors, contexts, other languages, limits of time.
import assert from 'node:assert/strict'
import { Sandbox } from '@e2b/code-interpreter'
import { NotFoundError, TimeoutError } from 'e2b'
import { withSandbox } from './check.mjs'

await withSandbox(Sandbox, async (sandbox) => {
  assert.equal((await sandbox.runCode('x = 20; x + 1')).text, '21')
  const printed = []
  const more = await sandbox.runCode('print("a"); import sys; print("b", file=sys.stderr); x', {
    onStdout: (message) => printed.push(message.line),
  })
  assert.deepEqual([more.text, more.logs.stdout, more.logs.stderr, printed], ['20', ['a\n'], ['b\n'], ['a\n']])

  const failed = await sandbox.runCode('kept = 1\n1 / 0')
  assert.equal(failed.error.name, 'ZeroDivisionError')
  assert.match(failed.error.traceback, /division by zero/)
  assert.equal((await sandbox.runCode('kept')).text, '1')
  assert.equal((await sandbox.runCode('import os; os.environ["A"]', { envs: { A: 'given' } })).text, 'given')

  const plot = 'import matplotlib.pyplot as plt; plt.bar(["a", "b"], [1, 2]); plt.title("two"); plt.show()'
  const [figure] = (await sandbox.runCode(plot)).results
  assert.ok(figure.png.startsWith('iVBOR'))
  assert.deepEqual([figure.chart.type, figure.chart.title, figure.chart.elements.length], ['bar', 'two', 2])
  const table = 'import pandas as pd; pd.DataFrame({"a": [1, 2]})'
  assert.match((await sandbox.runCode(table)).results[0].html, /<table/)

  const context = await sandbox.createCodeContext({ cwd: '/tmp', language: 'python' })
  assert.equal((await sandbox.runCode('import os; mine = 1; os.getcwd()', { context })).text, '/tmp')
  assert.equal((await sandbox.runCode('"mine" in globals()')).text, 'False')
  assert.ok((await sandbox.listCodeContexts()).some((each) => each.id === context.id))
  await sandbox.restartCodeContext(context)
  assert.equal((await sandbox.runCode('"mine" in globals()', { context })).text, 'False')
  await sandbox.removeCodeContext(context)
  await assert.rejects(sandbox.runCode('1', { context }), NotFoundError)

  for (const [language, code] of [
    ['javascript', 'const list = [1, 2, 3]; await Promise.resolve(list.map((each) => each * 14).at(-1))'],
    ['typescript', 'const answer: number = 42; answer'],
    ['bash', 'echo $((6 * 7))'],
  ]) {
    const done = await sandbox.runCode(code, { language })
    assert.equal(done.error, undefined, done.error?.traceback)
    assert.equal((done.text ?? done.logs.stdout.join('')).trim(), '42')
  }

  await assert.rejects(sandbox.runCode('while True: pass', { timeoutMs: 500 }), TimeoutError)
  assert.equal((await sandbox.runCode('kept')).text, '1')
  const ended = await sandbox.runCode('import os; os._exit(3)')
  assert.match(`${ended.error.name}: ${ended.error.value}`, /ContextRestarting: .*exit code 3/)
  assert.equal((await sandbox.runCode('1 + 1')).text, '2')
})

process.exit(0) // this SDK forgets its timer of a minute after a call that is refused
