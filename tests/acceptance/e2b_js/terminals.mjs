// Terminals: input, size, taking one up again.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'
import { until, withSandbox } from './check.mjs'

await withSandbox(Sandbox, async ({ pty }) => {
  const decoder = new TextDecoder()
  let screen = ''
  const show = (data) => (screen += decoder.decode(data, { stream: true }))
  const type = (text) => pty.sendInput(terminal.pid, new TextEncoder().encode(text))
  const terminal = await pty.create({ cols: 80, rows: 24, onData: show, envs: { GREETING: 'hëllo' }, cwd: '/tmp' })
  await type('echo "$GREETING $PWD $TERM"; stty size\n')
  await until(() => screen.includes('hëllo /tmp xterm-256color') && screen.includes('24 80'), screen)
  await pty.resize(terminal.pid, { cols: 132, rows: 50 })
  await type('stty size\n')
  await until(() => screen.includes('50 132'), screen)

  await terminal.disconnect()
  const again = await pty.connect(terminal.pid, { onData: show })
  await type('sleep 600\n')
  await until(() => screen.includes('sleep 600'), screen)
  await type('\x03')
  await type('echo still $((40 + 2))\n')
  await until(() => screen.includes('still 42'), screen)
  await type('exit 0\n')
  assert.equal((await again.wait()).exitCode, 0)
  assert.equal(await pty.kill(terminal.pid), false)
})
