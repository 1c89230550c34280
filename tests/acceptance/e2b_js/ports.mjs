// Ports: by fields and by name, private and public.
import assert from 'node:assert/strict'
import http from 'node:http'
import { Sandbox } from 'e2b'
import { until, withSandbox } from './check.mjs'

const server = new URL(process.env.E2B_API_URL)
const start = 'mkdir -p /tmp/www && echo hello > /tmp/www/index.html && cd /tmp/www && exec python3 -m http.server 8123'

// What a resolver of `*.localhost` would do: the name in Host, the connection to the server.
function get(host, headers = {}) {
  return new Promise((resolve, reject) => {
    const options = { hostname: server.hostname, port: server.port, headers: { host, ...headers } }
    http
      .get(options, async (reply) => resolve({ status: reply.statusCode, body: (await reply.toArray()).join('') }))
      .on('error', reject)
  })
}

await withSandbox(Sandbox, async (sandbox) => {
  const host = sandbox.getHost(8123)
  assert.ok(host.startsWith(`8123-${sandbox.sandboxId}.`), host)
  const token = { 'e2b-traffic-access-token': sandbox.trafficAccessToken }
  const closed = await get(host, token)
  assert.equal(closed.status, 502)
  assert.match(closed.body, /port is not open/)
  await sandbox.commands.run(start, { background: true })
  await until(async () => (await get(host, token)).status === 200, 'the port opens')
  assert.deepEqual(await get(host, token), { status: 200, body: 'hello\n' })
  assert.equal((await get(host)).status, 403)
  const fields = { 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '8123', ...token }
  assert.equal(await (await fetch(server, { headers: fields })).text(), 'hello\n')
})

await withSandbox(
  Sandbox,
  async (sandbox) => {
    await sandbox.commands.run(start, { background: true })
    await until(async () => (await get(sandbox.getHost(8123))).body === 'hello\n', 'a public port answers anybody')
  },
  { network: { allowPublicTraffic: true } },
)
