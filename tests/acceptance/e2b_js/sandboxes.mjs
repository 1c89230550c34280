// The life of sandboxes: made, found, given time, paused, connected to, killed.
import assert from 'node:assert/strict'
import { NotFoundError, Sandbox, SandboxNotFoundError } from 'e2b'
import { until, withSandbox } from './check.mjs'

const mark = { of: `node ${process.pid}` }

await withSandbox(
  Sandbox,
  async (sandbox) => {
    assert.ok(await sandbox.isRunning())
    const info = await sandbox.getInfo()
    assert.equal(info.sandboxId, sandbox.sandboxId)
    assert.equal(info.state, 'running')
    assert.equal(info.templateId, 'base')
    assert.deepEqual(info.metadata, mark)
    assert.deepEqual(info.lifecycle, { onTimeout: 'kill', autoResume: false })
    assert.ok(info.endAt - Date.now() > 60_000)

    const pages = Sandbox.list({ query: { metadata: mark, state: ['running'] } })
    assert.deepEqual((await pages.nextItems()).map((each) => each.sandboxId), [sandbox.sandboxId])
    assert.equal(pages.hasNext, false)

    await sandbox.setTimeout(600_000)
    assert.ok((await sandbox.getInfo()).endAt - Date.now() > 500_000)
    assert.equal((await sandbox.commands.run('echo $ALSO')).stdout, 'given\n')

    // With its memory: what runs goes on. With its files alone: it starts anew over them.
    const sleeper = await sandbox.commands.run('sleep 600', { background: true })
    await sandbox.files.write('kept', 'files')
    assert.equal(await sandbox.pause(), true)
    assert.equal(await sandbox.pause(), false)
    assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused')
    const again = await Sandbox.connect(sandbox.sandboxId)
    assert.ok((await again.commands.list()).some((each) => each.pid === sleeper.pid))
    await again.pause({ keepMemory: false })
    await again.connect({ timeoutMs: 120_000 })
    assert.equal(await again.files.read('kept'), 'files')
    assert.deepEqual(await again.commands.list(), [])

    await until(async () => (await sandbox.getMetrics()).length, 'a sample of metrics')
    const [metrics] = await sandbox.getMetrics()
    assert.ok(metrics.memUsed > 0 && metrics.memUsed < metrics.memTotal && metrics.cpuCount >= 1)
  },
  { metadata: mark, envs: { ALSO: 'given' } },
)

const killed = await Sandbox.create({ timeoutMs: 60_000 })
await killed.setTimeout(0)
await until(async () => !(await killed.isRunning()), 'the end at its timeout')
await assert.rejects(killed.getInfo(), SandboxNotFoundError)
await assert.rejects(Sandbox.connect(killed.sandboxId), NotFoundError)
assert.equal(await killed.kill(), false)

const paused = await Sandbox.create({ timeoutMs: 60_000, lifecycle: { onTimeout: 'pause', autoResume: true } })
await paused.setTimeout(0)
await until(async () => (await paused.getInfo()).state === 'paused', 'a pause at its timeout')
assert.equal((await paused.commands.run('echo woken by traffic')).stdout, 'woken by traffic\n')
assert.equal(await paused.kill(), true)

await assert.rejects(Sandbox.create('no-such-template'), /404: template 'no-such-template' not found/)
