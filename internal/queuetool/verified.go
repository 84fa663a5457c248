package queuetool

import "ftfuse/queue"

// Verified is a queue.Report as it travels from a running role.
type Verified struct {
	Dir      string    `json:"dir"`
	Node     string    `json:"node"`
	State    string    `json:"state,omitzero"` // why the newest state cannot be read
	Damaged  bool      `json:"damaged"`
	Lost     int       `json:"lost"` // batches that are needed and cannot be read
	Segments []Segment `json:"segments"`
	Aside    []string  `json:"aside,omitzero"` // damaged files of which nothing is needed any more
}

// Segment is a queue.SegmentReport.
type Segment struct {
	File    string  `json:"file"`
	Newest  bool    `json:"newest"`
	Batches uint64  `json:"batches"` // that can be read
	Records uint64  `json:"records"`
	Payload uint64  `json:"payload"`
	Bytes   uint64  `json:"bytes"`
	Bad     []Place `json:"bad,omitzero"`
}

// Place is a queue.DamagedItem.
type Place struct {
	Seq    uint64 `json:"seq,omitzero"`
	Batch  string `json:"batch,omitzero"`
	Needed bool   `json:"needed"`
	Error  string `json:"error"`
}

// NewVerified returns r in the form that travels.
func NewVerified(r queue.Report) *Verified {
	v := &Verified{Dir: r.Dir, Node: r.Node.String(), Damaged: r.Damaged(), Lost: r.Lost(), Aside: r.Aside}
	if r.State != nil {
		v.State = r.State.Error()
	}
	for _, s := range r.Segments {
		x := Segment{File: s.File, Newest: s.Newest, Batches: s.Good.Batches, Records: s.Good.Records, Payload: s.Good.Payload, Bytes: s.Good.Bytes}
		for _, b := range s.Bad {
			p := Place{Seq: b.Seq, Needed: b.Needed, Error: b.Err.Error()}
			if b.ID.N != 0 {
				p.Batch = b.ID.String()
			}
			x.Bad = append(x.Bad, p)
		}
		v.Segments = append(v.Segments, x)
	}
	return v
}
