// Snapshots and forks.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'
import { withSandbox } from './check.mjs'

await withSandbox(Sandbox, async (sandbox) => {
  await sandbox.files.write('kept', 'before')
  const snapshot = await sandbox.createSnapshot({ name: `of-node-${process.pid}` })
  await sandbox.files.write('kept', 'after')
  const listed = await Sandbox.listSnapshots({ sandboxId: sandbox.sandboxId }).nextItems()
  assert.deepEqual(listed.map((each) => each.snapshotId), [snapshot.snapshotId])
  for (const template of [snapshot.snapshotId, `of-node-${process.pid}`]) {
    const copy = await Sandbox.create(template, { timeoutMs: 60_000 })
    assert.equal(await copy.files.read('kept'), 'before')
    await copy.kill()
  }
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)

  const forks = await sandbox.fork({ count: 3, timeoutMs: 60_000 })
  assert.equal(new Set(forks.map((each) => each.sandboxId)).size, 3)
  await Promise.all(
    forks.map(async (fork, index) => {
      assert.equal(await fork.files.read('kept'), 'after')
      await fork.files.write('kept', `${index}`)
      await fork.kill()
    }),
  )
  assert.equal(await sandbox.files.read('kept'), 'after')
})
