// Files: written, read, listed, moved, watched, and reached by signed links.
import assert from 'node:assert/strict'
import { FileNotFoundError, FilesystemEventType, FileType, InvalidArgumentError, Sandbox } from 'e2b'
import { until, withSandbox } from './check.mjs'

await withSandbox(Sandbox, async (sandbox) => {
  const { files } = sandbox
  const written = await files.write('a/b/text.txt', 'héllo')
  assert.equal(written.path, '/home/user/a/b/text.txt')
  assert.equal(await files.read('a/b/text.txt'), 'héllo')

  const bytes = Uint8Array.from({ length: 3_000_000 }, (_, index) => index % 251)
  await files.write('bytes', bytes.buffer)
  assert.deepEqual(await files.read('bytes', { format: 'bytes' }), bytes)
  assert.equal((await files.read('bytes', { format: 'blob', gzip: true })).size, bytes.length)
  let streamed = 0
  for await (const chunk of await files.read('bytes', { format: 'stream' })) streamed += chunk.length
  assert.equal(streamed, bytes.length)
  await files.write('packed', 'x'.repeat(100_000), { gzip: true, metadata: { author: 'me' } })
  assert.equal((await files.read('packed')).length, 100_000)
  assert.deepEqual((await files.getInfo('packed')).metadata, { author: 'me' })

  const many = await files.writeFiles([...'xyz'].map((name) => ({ path: `many/${name}`, data: name })))
  assert.deepEqual(many.map((each) => each.name).sort(), ['x', 'y', 'z'])
  const listed = await files.list('many')
  assert.deepEqual(listed.map((each) => [each.name, each.type, each.size]).sort(), [
    ['x', FileType.FILE, 1],
    ['y', FileType.FILE, 1],
    ['z', FileType.FILE, 1],
  ])
  assert.equal((await files.list('.', { depth: 3 })).some((each) => each.path.endsWith('a/b/text.txt')), true)

  assert.equal(await files.makeDir('made/below'), true)
  assert.equal(await files.makeDir('made/below'), false)
  await files.rename('many/x', 'made/below/x')
  assert.equal(await files.exists('many/x'), false)
  assert.equal(await files.exists('made/below/x'), true)
  await files.remove('made')
  assert.equal(await files.exists('made'), false)
  await assert.rejects(files.read('made'), FileNotFoundError)
  await assert.rejects(files.list('a/b/text.txt'), InvalidArgumentError)
  assert.equal((await files.getInfo('bytes')).owner, 'user')

  const events = []
  const watch = await files.watchDir('many', (event) => events.push([event.type, event.name]), { recursive: true })
  await files.write('many/new/inner', '1')
  await files.remove('many/y')
  const wanted = [
    [FilesystemEventType.CREATE, 'new'],
    [FilesystemEventType.REMOVE, 'y'],
  ]
  const has = ([type, name]) => events.some((each) => each[0] === type && each[1] === name)
  await until(() => wanted.every(has), `events: ${JSON.stringify(events)}`)
  await watch.stop()

  // Links carry their permission in themselves; one that was changed, or is over, opens nothing.
  const link = await sandbox.downloadUrl('a/b/text.txt', { useSignatureExpiration: 60_000 })
  assert.equal(await (await fetch(link)).text(), 'héllo')
  assert.equal((await fetch(link.replace('text.txt', 'other'))).status, 401)
  const over = await sandbox.downloadUrl('a/b/text.txt', { useSignatureExpiration: -60 })
  assert.equal((await fetch(over)).status, 401)
  const form = new FormData()
  form.append('file', new Blob(['by a form']), 'any')
  const upload = await fetch(await sandbox.uploadUrl('sent'), { method: 'POST', body: form })
  assert.equal(upload.status, 200)
  assert.equal(await files.read('sent'), 'by a form')
})
