// Commands: output as it comes, input, signals, those in the background.
import assert from 'node:assert/strict'
import { CommandExitError, InvalidArgumentError, Sandbox, TimeoutError } from 'e2b'
import { until, withSandbox } from './check.mjs'

await withSandbox(Sandbox, async ({ commands }) => {
  const seen = { out: [], err: [] }
  const done = await commands.run('echo one; sleep 0.2; echo two; echo oh >&2', {
    onStdout: (text) => seen.out.push(text),
    onStderr: (text) => seen.err.push(text),
  })
  assert.deepEqual([done.exitCode, done.stdout, done.stderr], [0, 'one\ntwo\n', 'oh\n'])
  assert.deepEqual(seen, { out: ['one\n', 'two\n'], err: ['oh\n'] })

  await assert.rejects(commands.run('echo before; exit 3'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout], [3, 'before\n'])
    return true
  })
  const where = await commands.run('echo "$(whoami) $PWD $A"', { cwd: '/tmp', envs: { A: 'ü 1' } })
  assert.equal(where.stdout, 'user /tmp ü 1\n')
  assert.equal((await commands.run('whoami; sudo whoami', { user: 'root' })).stdout, 'root\nroot\n')
  assert.equal((await commands.run('sudo whoami')).stdout, 'root\n')
  await assert.rejects(commands.run('true', { cwd: '/not/there' }), InvalidArgumentError)
  await assert.rejects(commands.run('sleep 600', { timeoutMs: 300 }), TimeoutError)

  let printed = ''
  const reader = await commands.run('while read -r line; do echo "<$line>"; done; echo bye', {
    background: true,
    stdin: true,
    onStdout: (text) => (printed += text),
  })
  await commands.sendStdin(reader.pid, 'first\n')
  await reader.sendStdin('sécond\n')
  await until(() => printed === '<first>\n<sécond>\n', `lines that came back: ${printed}`)
  await reader.closeStdin()
  assert.equal((await reader.wait()).stdout, '<first>\n<sécond>\nbye\n')

  const sleeper = await commands.run('sleep 600', { background: true })
  const found = (await commands.list()).find((each) => each.pid === sleeper.pid)
  assert.deepEqual([found.cmd, found.args.at(-1)], ['/bin/bash', 'sleep 600'])
  assert.equal(await commands.kill(sleeper.pid), true)
  await assert.rejects(sleeper.wait(), CommandExitError)
  assert.equal(await commands.kill(sleeper.pid), false)

  // Who lets go of a command may take it up again; it goes on meanwhile.
  const counter = await commands.run('for i in $(seq 1000); do echo $i; sleep 0.02; done', { background: true })
  await counter.disconnect()
  let later = ''
  const again = await commands.connect(counter.pid, { onStdout: (text) => (later += text) })
  await until(() => later.split('\n').length > 3, 'output after connecting again')
  assert.equal(await again.kill(), true)

  const flood = await commands.run('seq 200000')
  assert.equal(flood.stdout.length, 1_288_895)
  assert.deepEqual(await commands.list(), [])
})
