// Volumes and secrets.
import assert from 'node:assert/strict'
import { Sandbox, Secret, SecretNotFoundError, Volume } from 'e2b'
import { withSandbox } from './check.mjs'

const volume = await Volume.create(`of-node-${process.pid}`)
await volume.writeFile('/seed', 'from outside')
await withSandbox(
  Sandbox,
  async ({ files }) => {
    assert.equal(await files.read('/data/seed'), 'from outside')
    await files.write('/data/result', 'from inside')
  },
  { volumeMounts: { '/data': volume } },
)
assert.equal(await volume.readFile('/result'), 'from inside')
assert.deepEqual((await volume.list('/')).map((each) => each.name).sort(), ['result', 'seed'])
assert.equal(await Volume.destroy(volume.volumeId), true)

const secret = await Secret.create(`node-${process.pid}`, 'hidden')
assert.equal(JSON.stringify(await Secret.getInfo(secret.name)).includes('hidden'), false)
await Secret.update(secret.name, 'other')
assert.equal(await Secret.exists(secret.name), true)
assert.equal(await Secret.destroy(secret.name), true)
await assert.rejects(Secret.getInfo(secret.name), SecretNotFoundError)
