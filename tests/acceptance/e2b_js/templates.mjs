// Templates of the builder.
import assert from 'node:assert/strict'
import { BuildError, Sandbox, Template, waitForPort } from 'e2b'

const name = `built-by-node-${process.pid}`
const recipe = Template()
  .fromTemplate('base')
  .setEnvs({ COLOR: 'blue' })
  .runCmd('echo $COLOR > /home/user/color')
  .copy('check.mjs', '/home/user/copied.mjs')
  .setWorkdir('/home/user')
  .setStartCmd('python3 -m http.server 8124', waitForPort(8124))

const lines = []
const built = await Template.build(recipe, name, { onBuildLogs: (line) => lines.push(line.message) })
assert.equal(built.name, name)
assert.ok(lines.length > 0)
assert.equal(await Template.exists(name), true)
const sandbox = await Sandbox.create(name, { timeoutMs: 60_000 })
assert.equal(await sandbox.files.read('color'), 'blue\n')
assert.match(await sandbox.files.read('copied.mjs'), /What the programs share/)
assert.match((await sandbox.commands.run('python3 -c "import urllib.request as u; print(u.urlopen(\'http://127.0.0.1:8124/color\').read())"')).stdout, /blue/)
await sandbox.kill()

assert.deepEqual((await Template.assignTags(name, ['v1'])).tags, ['v1'])
assert.ok((await Template.getTags(built.templateId)).some((each) => each.tag === 'v1'))
await Template.removeTags(name, 'v1')
assert.ok(!(await Template.getTags(built.templateId)).some((each) => each.tag === 'v1'))

const broken = Template().fromTemplate('base').runCmd('echo so far; exit 7')
await assert.rejects(Template.build(broken, `${name}-broken`), BuildError)
