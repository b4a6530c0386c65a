// A client of the relay, written from docs/PROTOCOL.md with stock libraries, and a scenario that uses it.
// Run: node client.mjs --url http://127.0.0.1:8080     (exit status 0: every check held)
// Section numbers are those of PROTOCOL.md.

import { createHash, randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual, parseArgs } from 'node:util'
import { CompactSign, importJWK } from 'jose'
import sodium from 'libsodium-wrappers'
import { base58btc } from 'multiformats/bases/base58'
import { v7 as uuid7 } from 'uuid'
import WebSocket from 'ws'

const TIMEOUT_MS = 30_000
const SEALED = 'application/vnd.agent-relay.sealed'
const BOUNCE = 'application/vnd.agent-relay.bounce'
const TEXT = 'text/plain; charset=utf-8'
const UUID7 = /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

const now = () => Math.floor(Date.now() / 1000)
const nonce = () => randomBytes(32).toString('base64url')
const b64 = (bytes) => Buffer.from(bytes).toString('base64url')
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('base64url')

const check = (held, what) => { if (!held) throw new Error(`check failed: ${what}`) }
const same = (got, want, what) =>
  check(isDeepStrictEqual(got, want), `${what}: got ${JSON.stringify(got)}, want ${JSON.stringify(want)}`)

// ---- Encoding (§1.3, §1.5)
function unb64(text) {
  const bytes = Buffer.from(text, 'base64url')
  check(b64(bytes) === text, 'strict base64url')
  return bytes
}

// JSON.parse takes duplicate keys and floats, so the tokens are looked at as well.
function readJson(bytes) {
  const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  const value = JSON.parse(text)
  check(value?.constructor === Object, 'a JSON object')
  let [open, string] = [[], '']
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\]:]|-?\d[\d.eE+-]*/g)) {
    if (token === '{' || token === '[') check(open.push(new Set()) <= 8, 'JSON of at most 8 levels')
    else if (token === '}' || token === ']') open.pop()
    else if (token === ':') {
      check(!open.at(-1).has(string) && open.at(-1).add(string), 'JSON without duplicate keys')
      check(!string.startsWith('must_'), 'no must_ member')
    } else if (token[0] === '"') check((string = JSON.parse(token)).isWellFormed(), 'JSON without lone surrogates')
    else check(/^-?\d+$/.test(token) && Number.isSafeInteger(Number(token)), 'JSON with integers only')
  }
  return value
}

// ---- Identity (§2)
const keyId = (did) => `${did}#${did.slice('did:key:'.length)}`
const didOf = (publicKey) => 'did:key:' + base58btc.encode(Buffer.from([0xed, 0x01, ...publicKey]))

function publicKeyOf(did) {
  const publicKey = base58btc.decode(did.slice('did:key:'.length)).subarray(2)
  check(publicKey.length === 32 && didOf(publicKey) === did, 'an Ed25519 did:key')
  return publicKey
}

async function makeAgent() {
  const { publicKey, privateKey } = sodium.crypto_sign_keypair() // libsodium's private key: seed, public key
  const jwk = { kty: 'OKP', crv: 'Ed25519', d: b64(privateKey.subarray(0, 32)), x: b64(publicKey) }
  return { did: didOf(publicKey), publicKey, privateKey, signer: await importJWK(jwk, 'Ed25519') }
}

// ---- JWS (§1.1, §1.2, §1.4, §1.6)
const sign = (agent, typ, payload) => new CompactSign(Buffer.from(JSON.stringify(payload)))
  .setProtectedHeader({ alg: 'Ed25519', kid: keyId(agent.did), typ }).sign(agent.signer)
const signingInput = (jws) => jws.slice(0, jws.lastIndexOf('.'))
const eidOf = (jws) => sha256(signingInput(jws))

// `signer`: the DID that must have signed, or a function that finds it in the payload.
function verify(jws, typ, signer) {
  const parts = jws.split('.').map(unb64)
  check(parts.length === 3 && parts[2].length === 64, 'a compact JWS')
  const [header, payload] = [readJson(parts[0]), readJson(parts[1])]
  same(Object.keys(header).sort(), ['alg', 'kid', 'typ'], 'header')
  same(header.typ, typ, 'typ')
  check(header.alg === 'Ed25519' || header.alg === 'EdDSA', 'alg')
  const did = typeof signer === 'function' ? signer(payload) : signer
  same(header.kid, keyId(did), 'kid')
  check(sodium.crypto_sign_verify_detached(parts[2], signingInput(jws), publicKeyOf(did)), `signature of ${typ}`)
  return payload
}

// ---- Envelopes (§3) and receipts (§4)
async function makeEnvelope(from, to, text, { id = uuid7(), sealed = false } = {}) {
  let [cty, body] = [TEXT, Buffer.from(text)]
  if (sealed) {
    const inside = JSON.stringify({ from: from.did, to, id, cty, body: b64(body) })
    cty = SEALED
    body = sodium.crypto_box_seal(inside, sodium.crypto_sign_ed25519_pk_to_curve25519(publicKeyOf(to)))
  }
  const jws = await sign(from, 'agent-envelope+jws', {
    v: 1, id, from: from.did, to, created_time: now(), expires_time: now() + 7 * 86400, kv: 1,
    body: { cty, len: body.length, sha256: sha256(body) },
  })
  return { id, eid: eidOf(jws), wire: { jws, body: b64(body) } }
}

// What a recipient checks before it believes anything (§3.7; sealed bodies: §3.6).
function openEnvelope(me, wire) {
  const payload = verify(wire.jws, 'agent-envelope+jws', (claims) => claims.from)
  const body = unb64(wire.body)
  check(payload.v === 1 && payload.kv === 1 && UUID7.test(payload.id), 'v, kv and id')
  same([payload.to, payload.body.len, payload.body.sha256], [me.did, body.length, sha256(body)], 'to, len and sha256')
  check(payload.created_time < payload.expires_time && now() < payload.expires_time, 'lifetime')
  const { from, id, body: { cty } } = payload
  const opened = { eid: eidOf(wire.jws), from, sealed: cty === SEALED, cty, text: body.toString() }
  if (!opened.sealed) return opened
  const inside = readJson(sodium.crypto_box_seal_open(body,
    sodium.crypto_sign_ed25519_pk_to_curve25519(me.publicKey), sodium.crypto_sign_ed25519_sk_to_curve25519(me.privateKey)))
  same([inside.from, inside.to, inside.id], [from, me.did, id], 'from, to and id inside the box')
  return { ...opened, cty: inside.cty, text: unb64(inside.body).toString() }
}

// The items of a receipt, which must be about these envelopes, in this order.
function readReceipt(jws, relay, ...envelopes) {
  const receipt = verify(jws, 'agent-receipt+jws', relay)
  same([receipt.v, receipt.relay], [1, relay], 'v and relay of the receipt')
  same(receipt.items.map((item) => [item.eid, item.custody]), envelopes.map(({ eid }) => [eid, 'inbox']), 'receipt')
  return receipt.items
}

// ---- WebSocket conversation (§5)
class Conversation {
  constructor(origin) {
    this.frames = []
    this.socket = new WebSocket(origin.replace(/^http/, 'ws') + '/v1/ws', 'agent-relay.v1', { perMessageDeflate: false })
    const fail = (error) => { this.failure ??= error }
    this.socket.on('message', (data, binary) => {
      try { this.frames.push(readJson(binary ? '' : data)) } catch (error) { fail(error) }
    })
    this.socket.on('error', fail)
    this.socket.on('close', (code) => { this.closed = code })
  }
  say(frame) { this.socket.send(JSON.stringify(frame)) }

  async until(found, what) {
    for (const end = Date.now() + TIMEOUT_MS; ; await sleep(2)) {
      if (this.failure) throw this.failure
      const value = found()
      if (value !== undefined) return value
      check(Date.now() < end, `${what} in time`)
    }
  }

  // Answers to different kinds of requests may overtake each other, so each kind is waited for by itself.
  hear(t) {
    return this.until(() => {
      const at = this.frames.findIndex((frame) => frame.t === t)
      if (at >= 0) return this.frames.splice(at, 1)[0]
      const end = this.frames.find((frame) => frame.t === 'error' || frame.t === 'bye')
      check(!end && this.closed === undefined, `${t} expected, not ${JSON.stringify(end ?? this.closed)}`)
    }, t)
  }
  ended() { return this.until(() => this.closed, 'close') }

  async ask(t, answer, members) {
    const ref = nonce()
    this.say({ t, ref, ...members })
    const frame = await this.hear(answer)
    same(frame.refs ?? [frame.ref], [ref], 'ref')
    return frame
  }
  submit(...envelopes) { return this.ask('submit', 'submitted', { envelopes: envelopes.map(({ wire }) => wire) }) }

  async ack(members) {
    this.say({ t: 'ack', epoch: this.welcome.epoch, ...members })
    return this.hear('acked')
  }

  async receive(me, count) {
    const got = []
    while (got.length < count) {
      const { epoch, items } = await this.hear('deliver')
      same(epoch, this.welcome.epoch, 'epoch of the delivery')
      for (const { seq, redelivered, envelope } of items) got.push({ seq, redelivered, ...openEnvelope(me, envelope) })
    }
    return got
  }

  close() { return this.socket.close(1000), this.ended() }
}

// "Check before you answer": the origin that was dialled, the pinned relay.
function checkHello(hello, origin, relay = hello.relay) {
  same([hello.url, hello.relay], [origin, relay], 'url and relay (wrong_relay)')
  check(unb64(hello.nonce).length === 32, 'nonce')
}

async function makeAuth(agent, relay, url, hello) {
  const claims = { aud: relay, url, nonce: hello.nonce, cnonce: nonce(), role: 'agent', iat: now(), exp: now() + 60 }
  return { claims, jws: await sign(agent, 'agent-auth+jws', claims) }
}

// "Check the proof before you say anything else".
function checkProof(agent, claims, welcome) {
  const proof = verify(welcome.proof, 'relay-proof+jws', claims.aud)
  const { url, nonce, cnonce, role } = claims
  const { epoch, cursor, head } = welcome
  for (const [name, value] of Object.entries({ sub: agent.did, url, nonce, cnonce, role, epoch, cursor, head }))
    same(proof[name], value, `proof.${name}`)
  check(welcome.inbox, 'an inbox here')
  return welcome
}

async function login(agent, origin, pinned) {
  const conversation = new Conversation(origin)
  const hello = await conversation.hear('hello')
  checkHello(hello, origin, pinned)
  const { jws, claims } = await makeAuth(agent, hello.relay, origin, hello)
  conversation.say({ t: 'auth', jws })
  const welcome = checkProof(agent, claims, await conversation.hear('welcome'))
  return Object.assign(conversation, { welcome, relay: hello.relay })
}

// ---- HTTP (§6)
async function http(origin, method, path, { json, token } = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {}
  const signal = AbortSignal.timeout(TIMEOUT_MS)
  const response = await fetch(origin + path, { method, headers, signal, body: json && JSON.stringify(json) })
  const answer = readJson(await response.arrayBuffer())
  same(response.status, 200, `${path}: ${JSON.stringify(answer)}`)
  return answer
}

async function loginHttp(agent, origin, pinned) {
  const hello = await http(origin, 'POST', '/v1/session/nonce')
  checkHello(hello, origin, pinned)
  const { jws, claims } = await makeAuth(agent, pinned, origin, hello)
  return checkProof(agent, claims, await http(origin, 'POST', '/v1/session', { json: { jws } }))
}

// ---- The scenario: one line a step
async function scenario(origin) {
  let number = 0
  const done = (what) => console.log(`ok ${++number} ${what}`)

  const [alice, bob, nobody] = [await makeAgent(), await makeAgent(), await makeAgent()]
  for (const { did, publicKey } of [alice, bob]) check(Buffer.from(publicKey).equals(publicKeyOf(did)), 'the key in the DID')
  done('keys and DIDs of two agents')

  const a = await login(alice, origin)
  const { relay } = a
  await (await login(bob, origin, relay)).close() // the first login makes the inbox
  done('logins over WebSocket, proofs verified')

  const plain = await makeEnvelope(alice, bob.did, 'hello, bob')
  const secret = await makeEnvelope(alice, bob.did, 'only for bob', { sealed: true })
  const receipt = readReceipt((await a.submit(plain, secret)).receipt, relay, plain, secret)
  same(receipt.map((item) => [item.to, item.dup]), [[bob.did, false], [bob.did, false]], 'items of the receipt')
  done('a plaintext and a sealed envelope sent, receipt verified')

  let b = await login(bob, origin, relay)
  same([b.welcome.cursor, b.welcome.head, b.welcome.pending.count], [0, 2, 2], 'welcome')
  const expected = { redelivered: false, from: alice.did, cty: TEXT }
  same(await b.receive(bob, 2), [
    { ...expected, seq: 1, eid: plain.eid, sealed: false, text: 'hello, bob' },
    { ...expected, seq: 2, eid: secret.eid, sealed: true, text: 'only for bob' },
  ], 'deliveries')
  same((await b.ack({ upto: 2 })).upto, 2, 'acked')
  done('both delivered, verified, opened and acked')

  const [again] = readReceipt((await a.submit(plain)).receipt, relay, plain)
  same([again.dup, again.pos], [true, receipt[0].pos], 'dup and pos')
  done('a resend is a duplicate at the same pos')

  const reused = await makeEnvelope(alice, bob.did, 'other bytes', { id: plain.id })
  const { wire: { jws: whole, body } } = await makeEnvelope(alice, bob.did, 'tampered')
  const signature = unb64(whole.split('.')[2])
  signature[0] ^= 1
  const tampered = { wire: { jws: `${signingInput(whole)}.${b64(signature)}`, body } }
  const refusals = await a.submit(reused, tampered, await makeEnvelope(alice, nobody.did, 'is anybody there?'))
  same([refusals.receipt, refusals.rejected.map(({ i, error, stored }) => [i, error, stored])],
    [null, [[0, 'replayed', 'no'], [1, 'bad_signature', 'no'], [2, 'unknown_inbox', 'no']]], 'rejected')
  done('replayed, bad_signature and unknown_inbox')

  const items = [plain, secret].map(({ id }) => ({ to: bob.did, id }))
  same((await a.ask('status', 'statuses', { items })).items, items.map((item) => ({ ...item, state: 'acked' })), 'status')
  done('status: acked')

  const claims = {
    v: 1, did: bob.did, kv: 1, seq: Date.now(), iat: now(), exp: now() + 7 * 86400, ttl: 300,
    status: 'active', relays: [{ did: relay, url: origin, prio: 0 }], drain: [], handles: [],
  }
  const published = await b.ask('publish', 'published', { record: await sign(bob, 'agent-endpoints+jws', claims) })
  same([published.stored, published.kv, published.seq], [true, 1, claims.seq], 'published')
  const { state, stale, record } = await a.ask('resolve', 'resolved', { did: bob.did })
  same([state, stale, verify(record, 'agent-endpoints+jws', bob.did)], ['found', false, claims], 'resolved')
  done('an endpoint record published, resolved and verified')

  const { token, epoch } = await loginHttp(bob, origin, relay)
  same([(await b.hear('bye')).error, await b.ended()], ['superseded', 4001], 'end of the older session')
  const posted = await makeEnvelope(alice, bob.did, 'by HTTP')
  readReceipt((await http(origin, 'POST', '/v1/envelopes', { json: { envelopes: [posted.wire] } })).receipt, relay, posted)
  const inbox = await http(origin, 'GET', '/v1/inbox?wait=10', { token })
  same(inbox.items.map(({ envelope }) => openEnvelope(bob, envelope).eid), [posted.eid], 'inbox')
  const ack = await http(origin, 'POST', '/v1/inbox/ack', { token, json: { epoch, upto: inbox.upto } })
  same(ack.upto, inbox.items[0].seq, 'ack')
  done('HTTP: nonce, session, submit, inbox, ack')

  b = await login(bob, origin, relay)
  const unwanted = await makeEnvelope(alice, bob.did, 'not wanted')
  readReceipt((await a.submit(unwanted)).receipt, relay, unwanted)
  const [{ seq }] = await b.receive(bob, 1)
  same((await b.ack({ refuse: [{ seq, code: 'unsupported' }] })).refused, [seq], 'refused')
  const [bounced] = await a.receive(alice, 1)
  same([bounced.from, bounced.cty], [relay, BOUNCE], 'the envelope of the bounce')
  const bounce = verify(bounced.text, 'agent-bounce+jws', relay)
  const ending = { eid: unwanted.eid, to: bob.did, reason: 'unsupported', maybe_delivered: true }
  same([bounce.v, bounce.relay, bounce.items], [1, relay, [ending]], 'bounce')
  await a.ack({ upto: bounced.seq })
  done('an envelope refused, bounce verified by its sender')

  const kept = await makeEnvelope(alice, bob.did, 'twice')
  readReceipt((await a.submit(kept)).receipt, relay, kept)
  for (const redelivered of [false, true]) {
    const [got] = await b.receive(bob, 1)
    same([got.eid, got.redelivered], [kept.eid, redelivered], 'delivery')
    await b.close()
    b = await login(bob, origin, relay)
  }
  done('redelivered after a disconnect, and marked')

  const elsewhere = new Conversation(origin)
  const hello = await elsewhere.hear('hello')
  elsewhere.say({ t: 'auth', jws: (await makeAuth(nobody, relay, 'https://relay.example.org', hello)).jws })
  same([(await elsewhere.hear('bye')).error, await elsewhere.ended()], ['wrong_relay', 4006], 'login with another url')
  done('a login with a wrong url refused: wrong_relay, 4006')

  const info = verify((await http(origin, 'GET', '/.well-known/agent-relay.json')).jws, 'agent-relay-info+jws', relay)
  same([info.v, info.did, info.url, info.limits], [1, relay, origin, hello.limits], 'relay information')
  done('the relay information document verified')
}

await sodium.ready
try {
  const { url } = parseArgs({ options: { url: { type: 'string' } } }).values
  check(url, '--url http://HOST:PORT')
  await scenario(new URL(url).origin)
  process.exit(0)
} catch (error) {
  console.error('FAILED', error)
  process.exit(1)
}
