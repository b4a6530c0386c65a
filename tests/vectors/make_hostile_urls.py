"""Writes hostile_urls.json: addresses that a relay finds in records and must never dial.

Like make.py it imports nothing of ``relay``. ``--check`` says whether the file is current.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("hostile_urls.json")
PUBLIC_V4 = "93.184.215.14"
PUBLIC_V6 = "2606:2800:220:1::1"
Case = dict[str, Any]


def words(text: str) -> list[str]:
    return text.split()


SCHEMES = words("""
    ftp ftps sftp file gopher dict ldap ldaps tftp smb ssh telnet redis rediss unix jar data
    javascript blob about mailto netdoc php phar expect view-source git svn rtsp imap smtp pop3
    h2c httpss https+unix HTTPS Https http2
""")

NO_URL = [
    "", " ", "https", "https:", "https:/", "https://", "https:///", "//relay.example",
    "relay.example", "relay.example:443", "https:relay.example", "https:/relay.example",
    "https:///relay.example", "https:\\\\relay.example", "https://:443", "https://?", "https://#",
    "https:// relay.example", " https://relay.example", "https://relay.example ",
    "\thttps://relay.example", "h\ttps://relay.example",
]  # fmt: skip

USERINFO = [
    "https://alice@relay.example", "https://alice:secret@relay.example", "https://@relay.example",
    "https://:@relay.example", "https://relay.example@127.0.0.1",
    "https://relay.example:443@127.0.0.1", "https://relay.example%40127.0.0.1",
    "https://127.0.0.1@relay.example@10.0.0.1", "https://relay.example\\@127.0.0.1",
    "https://relay.example#@127.0.0.1", "https://relay.example?@127.0.0.1",
    "https://relay.example/\\@127.0.0.1", "https://a@[::1]", "https://relay.example;@127.0.0.1",
    "https://127.0.0.1:80\\@relay.example",
]  # fmt: skip

CONTROL = ["\x00", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\xa0", " "]

INJECTED = [
    "https://relay.example\r\nHost: 127.0.0.1", "https://relay.example/\r\nX: y",
    "https://relay.example:443\r\nSET a b",
    "https://relay.example/%0d%0aX:y\r\n\r\nGET / HTTP/1.1", "https://relay.example\nHost:x",
    "https://relay.example/\u560d\u560aX:y", "https://relay.example/\uff0d\uff0a",
    "https://relay.example/a b HTTP/1.1",
]  # fmt: skip

ENCODED = [
    "https://relay%2eexample", "https://%31%32%37.0.0.1", "https://127%2e0%2e0%2e1",
    "https://relay.example%00", "https://relay.example%00.evil.example",
    "https://127.0.0.1%00.relay.example", "https://relay.example%2f",
    "https://relay.example%0d%0a", "https://relay.example%20", "https://relay.example%09",
    "https://%6c%6f%63alhost", "https://relay.example%23@10.0.0.1",
    "https://relay.example%5c.evil.example", "https://relay.example/%",
    "https://relay.example/%zz", "https://relay.example/%2", "https://[%3a%3a1]",
    "https://relay.example:%34%34%33",
]  # fmt: skip

NUMBERS = words("""
    0177.0.0.1 0177.1 0177.0.1 127.1 127.0.1 127.00.0.1 127.0.0.01 127.000.000.001 2130706433
    017700000001 0x7f000001 0x7f.1 0x7f.0.0.1 0x7f.0x0.0x0.0x1 0X7F000001 127.0.0.0x1 1 0 00 0x
    0x0 0.0.0 10.1 10.0.1 012.0.0.1 0xa.0.0.1 167772161 0xc0a80101 3232235777 030052000401
    192.168.257 192.11010305 169.254.43518 0xa9fea9fe 2852039166 0251.0376.0251.0376
    0xA9.0xFE.0xA9.0xFE 4294967295 4294967296 340282366920938463463374607431768211455 256.0.0.1
    127.0.0.256 127.0.0.1. 127.0.0.1.. 127..0.1 .127.0.0.1 127.0.0.1.1 127.0.0.-1 127.0.0.+1
    127.0.0.1e0 1.2.3 1.2.3.4.5 relay.example.127 relay.example.0x7f 127.0.0.1.0x1
""")

NAMES = [
    "relay.example.", "relay..example", ".relay.example", "-relay.example", "relay-.example",
    "relay_a.example", "relay.example..", "rel*ay.example", "*.example", "relay.exa mple",
    "relay,example", "relay;example", "relay'example", 'relay"example', "relay<example>",
    "relay|example", "relay^example", "relay`example", "relay{example}", "relay$example",
    "relay!example", "relay~example", "relay(example)", "relay&example", "relay=example",
    "relay+example", "relay\\example", "relay%example", "a" * 64 + ".example",
    ".".join(["a" * 60] * 5), "localhost.", "x.onion", "expyuzz4wqqyqhjn.onion", "printer.local",
    "relay.local", "..", ".", "-", "_", "[relay.example]", "[127.0.0.1]", "[relay.example]:443",
]  # fmt: skip

UNICODE = [
    "r\u00e9lay.example", "\u0440elay.example", "relay\u3002example", "relay\uff0eexample",
    "relay\uff61example", "\uff52\uff45lay.example", "\u2460\u2461\u2466.0.0.1",
    "\uff11\uff12\uff17.0.0.1", "\u0661\u0662\u0667.0.0.1", "127\u30020\u30020\u30021",
    "127.0.0.\u00b9", "loc\u00adalhost", "localho\u017ft", "\u24db\u24de\u24d2alhost",
    "relay\u200b.example", "relay\u200d.example", "relay\u202e.example", "relay\ufeff.example",
    "relay\u2044example", "relay\uff0fexample", "relay\u2215example", "relay\u2100example",
    "relay\uff03example", "relay\uff1a80", "relay\uff20127.0.0.1", "relay\uff1fexample",
    "stra\u00dfe.example", "\u0130relay.example", "relay.example\u0000", "\U0001f4a9.example",
    "\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1", "relay.ex\u00e4mple", "relay\ufe52example",
    "relay\u2024example",
]  # fmt: skip

PORTS = [
    "0", "00", "65536", "99999", "-1", "+443", "0443", "443 ", " 443", "443a", "0x1bb", "4_43",
    "443:443", "4e2", "100000", "2147483648", "18446744073709551617", "\uff14\uff14\uff13",
    "\u0664\u0664\u0663", "", "443.0", "443,80",
]  # fmt: skip

BRACKETS = [
    "[::1", "::1]", "[[::1]]", "[]", "[:]", "[:::]", "[::1]a", "a[::1]", "[::1].example",
    "[::1%25eth0]", "[::1%eth0]", "[fe80::1%25lo]", "[fe80::1%1]", "[v1.x]", "[vF.::1]",
    "[::1/128]", "[::ffff:127.0.0.1.1]", "[::ffff:0177.0.0.1]", "[::ffff:127.1]", "[1::2::3]",
    "[12345::]", "[g::1]", "[::1 ]", "[ ::1]", "::1", "[0:0:0:0:0:0:0:0:1]", "[::1]%00",
    "[::\uff11]",
]  # fmt: skip

V4 = words("""
    0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200
    100.127.255.254 127.0.0.1 127.0.0.2 127.127.127.127 127.255.255.255 168.63.129.16 169.254.0.1
    169.254.169.254 169.254.170.2 169.254.255.255 172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.1
    192.0.0.170 192.0.0.192 192.0.0.255 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1
    192.168.0.1 192.168.1.1 192.168.255.255 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1
    203.0.113.1 224.0.0.1 224.0.0.251 232.1.1.1 239.255.255.250 240.0.0.1 250.1.2.3
    255.255.255.254 255.255.255.255
""")

V6 = words("""
    :: ::1 ::2 100::1 100:0:0:1::1 64:ff9b:1::1 64:ff9b:1::808:808 64:ff9b:1:ffff::808:808
    64:ff9b:2::1 200::1 400::1 1000::1 1fff::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2
    2001:0:0:0:0:0:80ff:fffe 2001:1::1 2001:1::2 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1
    2001:20::1 2001:2f:ffff::1 2001:30::1 2001:1ff::1 2001:db8::1 2001:db8:ffff::1 2002::1
    2002:808:808::1 2002:7f00:1::1 2002:a00:1::1 2002:c0a8:101::1 2620:4f:8000::1 3ffe::1 3fff::1
    3fff:fff::1 4000::1 5f00::1 8000::1 c000::1 e000::1 f800::1 fc00::1 fd00::1 fd00:ec2::254
    fdff::1 fe00::1 fe80::1 fe80::5efe:7f00:1 febf::1 fec0::1 feff::1 ff00::1 ff01::1 ff02::1
    ff02::fb ff05::1:3 ff0e::1 ffff::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    2606:2800:220:1:0:5efe:127.0.0.1 2606:2800:220:1:200:5efe:10.0.0.1
    2606:2800:220:1:0:5efe:8.8.8.8
""")

EMBEDDED = words("""
    127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.1 169.254.169.254 100.64.0.1 0.0.0.0 255.255.255.255
    224.0.0.1 192.0.2.1
""")

LOCATIONS = [
    "http://{canary}/", "https://{canary}/", "//{canary}/", "/v1/ws", "ws://{canary}/v1/ws", "wss://{canary}/",
    "http://localhost:{port}/", "HTTP://{canary}", "http:\\\\{canary}", "http://x@{canary}/", " http://{canary}/",
]  # fmt: skip
STATUSES = [300, 301, 302, 303, 307, 308]


def wrapped(inner: str) -> Iterator[tuple[str, str]]:
    """An IPv4 address in every form of IPv6 that holds one."""
    four = ipaddress.IPv4Address(inner)
    high, low = int(four) >> 16, int(four) & 0xFFFF
    flipped = int(four) ^ 0xFFFF_FFFF
    yield "mapped", f"::ffff:{inner}"
    yield "mapped-hex", f"::ffff:{high:x}:{low:x}"
    yield "mapped-long", f"0:0:0:0:0:ffff:{inner}"
    yield "compatible", f"::{inner}"
    yield "translated", f"::ffff:0:{inner}"
    yield "nat64", f"64:ff9b::{inner}"
    yield "nat64-local", f"64:ff9b:1::{high:x}:{low:x}"
    yield "6to4", f"2002:{high:x}:{low:x}::1"
    yield "teredo", f"2001:0:5db8:d70e:0:ffff:{flipped >> 16:x}:{flipped & 0xFFFF:x}"
    yield "teredo-server", f"2001:0:{high:x}:{low:x}:0:ffff:a247:28f1"
    yield "isatap", f"2606:2800:220:1:0:5efe:{high:x}:{low:x}"


def named(class_: str, values: list[str], form: str = "{}") -> Iterator[Case]:
    for number, value in enumerate(values, 1):
        yield {"class": class_, "name": f"{class_}-{number}", "url": form.format(value)}


def in_control() -> Iterator[Case]:
    for mark in CONTROL:
        for place, form in [
            ("host", "https://relay{}.example"),
            ("end", "https://relay.example{}"),
            ("port", "https://relay.example:{}443"),
            ("path", "https://relay.example/a{}b"),
        ]:
            name = f"control-{place}-{mark.encode('utf-8').hex()}"
            yield {"class": "control", "name": name, "url": form.format(mark)}


def literals() -> Iterator[Case]:
    for address in V4:
        for scheme in ("https", "http"):
            name = f"v4-{scheme}-{address}"
            yield {"class": "v4", "name": name, "url": f"{scheme}://{address}"}
    for address in V6:
        yield {"class": "v6", "name": f"v6-{address}", "url": f"https://[{address}]:8443"}
    for inner in EMBEDDED:
        for kind, address in wrapped(inner):
            name = f"embedded-{kind}-{inner}"
            yield {"class": "embedded", "name": name, "url": f"https://[{address}]"}


def answers() -> Iterator[Case]:
    """Fine names with an answer of DNS that is not."""
    url = "https://relay.example"
    for address in [*V4, *V6]:
        yield {"class": "dns", "name": f"dns-{address}", "url": url, "answers": [address]}
    for address in EMBEDDED:
        for kind, form in wrapped(address):
            name = f"dns-{kind}-{address}"
            yield {"class": "dns", "name": name, "url": url, "answers": [form]}
    for number, mixed in enumerate(
        [
            [PUBLIC_V4, "127.0.0.1"], ["127.0.0.1", PUBLIC_V4], [PUBLIC_V4, PUBLIC_V6, "::1"],
            [PUBLIC_V6, "10.0.0.1"], [PUBLIC_V4] * 7 + ["192.168.0.1"],
            [PUBLIC_V4, "::ffff:10.0.0.1"],
        ],
        1,
    ):  # fmt: skip
        yield {"class": "dns-mixed", "name": f"dns-mixed-{number}", "url": url, "answers": mixed}


def plain() -> Iterator[Case]:
    for scheme in ("http", "ws"):
        for host, found in [
            ("relay.example", [PUBLIC_V4]), ("relay.example", [PUBLIC_V6]), (PUBLIC_V4, []),
            (f"[{PUBLIC_V6}]", []), ("relay.example:8080", [PUBLIC_V4]),
            ("relay.example:443", [PUBLIC_V4]),
        ]:  # fmt: skip
            name = f"plain-{scheme}-{host}-{len(found)}-{'v6' if ':' in ''.join(found) else 'v4'}"
            yield {
                "class": "plain", "name": name, "url": f"{scheme}://{host}", "answers": found,
            }  # fmt: skip


def local() -> Iterator[Case]:
    for host in ("localhost", "LOCALHOST", "a.localhost", "relay.localhost:8443", "localhost:6379"):
        for scheme in ("https", "http", "wss", "ws"):
            name = f"local-{scheme}-{host}"
            # whatever DNS may say of these names
            url = f"{scheme}://{host}"
            yield {"class": "local", "name": name, "url": url, "answers": [PUBLIC_V4]}


def redirects() -> Iterator[Case]:
    for status in STATUSES:
        for number, location in enumerate(LOCATIONS, 1):
            name = f"redirect-{status}-{number}"
            yield {"class": "redirect", "name": name, "status": status, "location": location}


def cases() -> Iterator[Case]:
    yield from named("scheme", SCHEMES, "{}://relay.example")
    yield from named("scheme-loopback", ["file", "gopher", "dict", "redis"], "{}://127.0.0.1:6379/")
    yield from named("no-url", NO_URL)
    yield from named("userinfo", USERINFO)
    yield from in_control()
    yield from named("injection", INJECTED)
    yield from named("encoding", ENCODED)
    yield from named("number", NUMBERS, "https://{}")
    yield from named("number-port", NUMBERS[:12], "https://{}:8443")
    yield from named("name", NAMES, "https://{}")
    yield from named("unicode", UNICODE, "https://{}")
    yield from named("port", PORTS, "https://relay.example:{}")
    yield from named("port-loopback", PORTS, "https://127.0.0.1:{}")
    yield from named("bracket", BRACKETS, "https://{}")
    yield from named("long", ["a" * 3_000], "https://relay.example/{}")
    yield from literals()
    yield from answers()
    yield from plain()
    yield from local()
    yield from redirects()


ALLOWED: list[Case] = [
    {"name": "name", "url": "https://relay.example", "answers": [PUBLIC_V4, PUBLIC_V6]},
    {"name": "upper-case-host", "url": "https://Relay.Example", "answers": [PUBLIC_V4]},
    {"name": "a-label", "url": "https://xn--rlay-bpa.example", "answers": [PUBLIC_V4]},
    {"name": "port", "url": "https://relay.example:8443", "answers": [PUBLIC_V4]},
    {"name": "websocket", "url": "wss://relay.example:1", "answers": [PUBLIC_V4]},
    {"name": "v4-literal", "url": f"https://{PUBLIC_V4}", "answers": []},
    {"name": "v6-literal", "url": f"https://[{PUBLIC_V6}]:65535", "answers": []},
    {"name": "mapped", "url": "https://relay.example", "answers": [f"::ffff:{PUBLIC_V4}"]},
    {"name": "nat64", "url": "https://relay.example", "answers": [f"64:ff9b::{PUBLIC_V4}"]},
    {"name": "below-10", "url": "https://9.255.255.255", "answers": []},
    {"name": "above-10", "url": "https://11.0.0.0", "answers": []},
    {"name": "below-carriers", "url": "https://100.63.255.255", "answers": []},
    {"name": "above-carriers", "url": "https://100.128.0.0", "answers": []},
    {"name": "below-172.16", "url": "https://172.15.255.255", "answers": []},
    {"name": "above-172.31", "url": "https://172.32.0.0", "answers": []},
    {"name": "above-2001::/23", "url": "https://[2001:200::1]", "answers": []},
    {"name": "above-documentation", "url": "https://[2001:db9::1]", "answers": []},
]  # fmt: skip


def main() -> int:
    found = {"version": 1, "kind": "hostile_urls", "cases": list(cases()), "allowed": ALLOWED}
    names = [case["name"] for case in found["cases"]]  # type: ignore[index]
    assert len(set(names)) == len(names), {one for one in names if names.count(one) > 1}
    text = json.dumps(found, indent=1, ensure_ascii=True) + "\n"
    if "--check" in sys.argv[1:]:
        return 0 if OUT.read_text() == text else 1
    OUT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
