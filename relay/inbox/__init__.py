"""Accept envelopes, deliver them, and end them (docs/ARCHITECTURE.md).

The journey of one envelope, with the function of each hop::

    accept   ws.Connection._on_message ─▶ frames.parse
               ─▶ Conversation.receive ──────────── StoreEnvelopes (permissions, hops)
               ─▶ SubmitStream.submit ───────────── parse, verify, admit (admission)
               ─▶ GroupCommit.put ─ run ─────────── one commit for all that came meanwhile
               ─▶ BatchAcceptor.accept
                    ─▶ InboxStore.append ────────── durable, each item judged alone
                    ─▶ Dispatcher.dispatch ──────── the sessions of this node (see below)
                    ─▶ Contacts.record ──────────── whom the sender has written to
               ─▶ SubmitStream.on_committed ─────── Submitted: one signed receipt

    deliver  InboxConsumer.on_stored ─▶ InboxDelivery.on_stored ── from memory, if next in line
             InboxConsumer.read ──────▶ InboxDelivery.on_page ──── else from the store
               ─▶ Send(Deliver) ─▶ Connection._write, or into the window of an InboxForwarder

    end      Conversation.receive(Ack) ─▶ InboxDelivery.ack ─▶ AckRequest
               ─▶ GroupCommit ─▶ InboxStore.ack ─▶ InboxDelivery.on_acked ─▶ Send(Acked)
             or InboxStore.sweep (expiry) ─▶ BouncePump: tell the sender

An inbox without a connection is read over HTTP (``http_sessions``). The features above pass in what
the inbox needs of them: ``ports.Router``, ``ports.LoginGate`` and plain callables.
"""
