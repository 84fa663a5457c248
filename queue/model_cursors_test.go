package queue

import "slices"

// otherCursors opens the queue with other cursors than before.
func (m *model) otherCursors() {
	m.settle()
	mustClose(m.t, m.q)
	m.o.Cursors = m.otherNames()
	m.becomeOthers(m.o.Cursors)
	m.open()
	m.afterReopen(false)
	m.checkLost()
}

// settle has the last change of cursors, and all acks, be on disk: a crash takes none of it back.
func (m *model) settle() {
	settled(m.q)
	mustCommit(m.t, m.q)
}

// setCursors changes the cursors, and what new ones want, while the queue runs. What follows
// (reads, acks, commits, a restart, a crash) comes while what gone ones needed is being dropped.
func (m *model) setCursors() {
	m.settle()
	set := CursorSet{Cursors: m.otherNames(), Copies: m.o.Copies}
	set.Again = m.beginAgain(set.Cursors)
	had := slices.ContainsFunc(m.cur, func(c *modelCursor) bool { return c.name == "b" })
	if picky := m.r.IntN(2) == 0; !had && slices.Contains(set.Cursors, "b") {
		m.picky.Store(picky)
	}
	set.Wants = m.o.Wants
	for _, name := range set.Cursors {
		if !slices.ContainsFunc(m.cur, func(c *modelCursor) bool { return c.name == name }) && m.r.IntN(2) == 0 {
			set.Later = append(set.Later, name)
		}
	}
	m.becomeOthers(set.Cursors)
	if err := m.q.SetCursors(set); err != nil {
		m.t.Fatal(err)
	}
	m.o.Cursors = set.Cursors
	for _, c := range m.cur {
		if c.c == nil {
			c.c, c.base = mustCursor(m.t, m.q, c.name), uint64(len(m.entries))
			if slices.Contains(set.Later, c.name) {
				c.later = c.base + 1
			}
		}
	}
	switch m.r.IntN(4) {
	case 0:
		m.reopen(true)
	case 1:
		m.reopen(false)
	case 2:
		m.checkLost()
	}
}

// beginAgain picks some of names whose consumers have not begun, and takes from what they need
// what all others have passed since they were added.
func (m *model) beginAgain(names []string) (again []string) {
	var others, fresh []*modelCursor
	for _, c := range m.cur {
		if c.base == 0 || !slices.Contains(names, c.name) || m.r.IntN(3) == 0 {
			if c.later == 0 {
				others = append(others, c)
			}
		} else {
			fresh, again = append(fresh, c), append(again, c.name)
			c.later = 0
		}
	}
	for _, c := range fresh {
		for seq := uint64(1); seq <= c.base; seq++ {
			if len(others) > 0 && !slices.ContainsFunc(others, func(o *modelCursor) bool { return !o.acked[seq] }) {
				c.acked[seq] = true
			}
		}
	}
	return again
}

// begunByStart has the model take over what cursors of CursorSet.Later have passed with a start,
// which is what all that had begun have acked.
func (m *model) begunByStart() {
	for _, c := range m.cur {
		for seq := uint64(1); seq < c.later; seq++ {
			if c.acked[seq] || !c.c.acked.Contains(seq) {
				continue
			}
			for _, o := range m.cur {
				if o.later == 0 && !o.c.acked.Contains(seq) {
					m.t.Fatalf("%s has passed %d with a start, which %s needs", c.name, seq, o.name)
				}
			}
			c.acked[seq] = true
		}
	}
	for _, c := range m.cur {
		c.later = 0
	}
}

func (m *model) otherNames() (names []string) {
	for len(names) == 0 {
		for _, n := range []string{"a", "b", "c"} {
			if m.r.IntN(2) == 0 {
				names = append(names, n)
			}
		}
	}
	return names
}

// becomeOthers has the model have the cursors names: who is new needs what somebody needed, and
// wants; what nobody needs any more is lost.
func (m *model) becomeOthers(names []string) {
	var now []*modelCursor
	for _, n := range names {
		i := slices.IndexFunc(m.cur, func(c *modelCursor) bool { return c.name == n })
		if i >= 0 {
			now = append(now, m.cur[i])
			continue
		}
		c := newModelCursor(n)
		for seq := uint64(1); seq <= uint64(len(m.entries)); seq++ {
			all := !m.wants(n, m.entries[seq-1].Batch.ID.Lane)
			if !all {
				all = true
				for _, o := range m.cur {
					all = all && o.acked[seq]
				}
			}
			if all {
				c.acked[seq] = true
			}
		}
		now = append(now, c)
	}
	for seq := uint64(1); seq <= uint64(len(m.entries)); seq++ {
		before, after, told := false, false, false
		for _, c := range m.cur {
			if had := c.later > 0 && m.hadFor(c, now, seq); !had {
				before = before || !c.acked[seq]
				told = told || !c.acked[seq] && !m.copyOnly(c)
			}
		}
		for _, c := range now {
			after = after || !c.acked[seq]
		}
		if before && !after {
			m.lost[seq] = told
		}
	}
	m.cur = now
}

// hadFor says whether one of now wants an entry for c, which never had a consumer.
func (m *model) hadFor(c *modelCursor, now []*modelCursor, seq uint64) bool {
	return slices.ContainsFunc(now, func(o *modelCursor) bool {
		return m.wants(o.name, m.entries[seq-1].Batch.ID.Lane) && (m.copyOnly(c) || !m.copyOnly(o))
	})
}
