// Package forward sends the batches of a queue to groups of destinations and brings
// back what became of them. Mount and relay use it alike.
//
//	queue ── cursor "forward/G" ──▶ reader: heads, in order, at most 128k ahead
//	                                   │
//	                                   ▼  by (origin, [route,] bucket)
//	                    flow  flow  flow  flow      each: what waits, in order,
//	                      │     │     │     │             and its one home
//	     health ─ pick ──▶└──┬──┘     └──┬──┘
//	     (pure)              ▼           ▼
//	                  destination A   destination B     transport.Client each: takes the
//	                    │    ▲          │    ▲          oldest batch that waits for it when
//	                    ▼    │          ▼    │          its window has room, bytes by Fetch
//	                   BATCH ACK…      BATCH ACK, FINAL, SKIP, REFUSE
//
// A group of mode any or hash is one such line over one cursor. A broadcast group is
// one line for each primary, each with a cursor of its own and the secondary of the
// same position, if there is one, as its stand-in: a destination that is down costs
// the others nothing.
//
// # Who may carry what
//
// Each destination has a health, which is pure: times and events go in (health.go),
// and ranks come out. A flow goes to the destination of the best rank; among equals the
// highest rendezvous value of (flow, address) wins, so that every node, and every start
// of it, chooses the same, and a destination more or less moves only its share.
//
//	state      is                                     rank (primary, secondary)
//	new        not tried to the end yet, 1 s at most    0, 1  (the flow waits for it)
//	good       connected, answers                       0, 1
//	shaken     connection lost, 500 ms at most          0, 1  (the flow waits for it)
//	hold       connected again, not trusted yet         2, 3
//	stalled    connected, no answer and no bytes
//	           of batches that move for 5 s              4, 5
//	draining   the peer asked for no more               none
//	down       no connection                            none
//
//	event                new       good      shaken   hold      stalled   draining  down
//	connected            good      –         good     –         –         –         hold
//	lost: reset, busy…   down      shaken(1) –        down      down      down      –
//	lost: silent, bye    down      down      down     down      down      down      –
//	connecting failed    down      –         down     –         –         –         –
//	drain                –         draining  –        draining  draining  –         –
//	acked                –         –         –        –         hold      –         –
//	bytes moved          –         –         –        –         –         –         –
//	time: neither in 5 s –         stalled   –        stalled   –         –         –
//	time is up           down      –         down     good      –         –         –
//	used at need         –         –         –        good      –         –         –
//
//	(1) the third time within 10 s: down.
//
// hold lasts failback_after, and twice as long each time the destination fails before it
// was good for ten times failback_after, up to 10 minutes. "Used at need": nothing better
// is there, so that holding it off would only keep data back.
//
// # How a flow moves
//
//	from a home that is down or stalled   what was given to it is recalled and goes to the
//	                                      new home at once, before anything newer, flagged
//	                                      resent where it may have been on the wire
//	from a home that is merely worse      nothing new is given to it; when it has answered
//	(failback, drain, behind)             what it has, the flow goes on at the new home
//	to nowhere: no destination is there   it stays; its client resends when it connects
//
// An ack that comes late settles a batch wherever it is: what waits is not sent any more,
// what is with a third is withdrawn. A final ack names an id and no content: it settles
// only what was acked here.
//
// # Never twice, never lost
//
// A cursor is acked for a batch only on the ack of exactly its id (promise 4); with
// KeepFinal only when it is final. Ids are never changed on the way, so that the
// delivered set of whoever gets a batch twice takes it once. At two receivers that stand
// in for each other only what was in flight at a failover can stand at both: it was sent
// with the resent flag to the second one. So that this holds over a restart too, the
// number up to which batches may have been sent is stored before they are (mark.go), and
// what is at or below it at a start carries the flag. A relay takes a batch again whose
// other copy came by nodes that this one's way does not have (ways.go): else two copies
// could each be deleted on the strength of the other.
package forward
