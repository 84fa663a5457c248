package template

import (
	"fmt"
	"strings"
)

// compiler reads one template from left to right.
type compiler struct {
	use        Use
	text       string
	timeFormat string
	ops        []op
	lit        []byte
	fields     Fields
	lineAt     int // where %L stands, plus one
	pre        []op
}

func (c *compiler) fail(pos int, format string, args ...any) error {
	return &Error{Use: c.use, Text: c.text, Pos: pos, Msg: fmt.Sprintf(format, args...)}
}

func (c *compiler) run(t *Template) error {
	if c.text == "" {
		return c.fail(0, "it is empty")
	}
	if c.use == Format && c.text == JSON {
		return c.compileJSON(t)
	}
	for pos := 0; pos < len(c.text); {
		b := c.text[pos]
		if b != '%' {
			if err := c.checkByte(pos, b); err != nil {
				return err
			}
			c.lit = append(c.lit, b)
			pos++
			continue
		}
		next, err := c.directive(pos)
		if err != nil {
			return err
		}
		pos = next
	}
	c.flush()
	if c.lineAt > 0 {
		t.pre, t.post = c.pre, c.ops
	} else {
		t.pre = c.ops
	}
	t.fields = c.fields
	if c.use == File {
		return c.checkFile(t.pre)
	}
	return nil
}

func (c *compiler) checkByte(pos int, b byte) error {
	switch {
	case b == 0:
		return c.fail(pos, "a NUL byte")
	case b == '\n' && c.use == Format:
		return c.fail(pos, "a line feed: the record's own line end follows the format")
	}
	return nil
}

// directive reads the directive at pos and returns where the text goes on.
func (c *compiler) directive(pos int) (int, error) {
	if pos+1 == len(c.text) {
		return 0, c.fail(pos, "a lone %% at the end; write %%%% for a percent sign")
	}
	switch d := c.text[pos+1]; d {
	case '%':
		c.lit = append(c.lit, '%')
	case 'H':
		c.add(op{kind: opHost}, Host)
	case 'P':
		c.add(op{kind: opPID}, PID)
	case 'U':
		c.add(op{kind: opUID}, UID)
	case 'G':
		c.add(op{kind: opGID}, GID)
	case 'F':
		c.add(op{kind: opPath}, Path)
	case 'f':
		c.add(op{kind: opBase}, Path)
	case 'N':
		c.add(op{kind: opSeq}, Seq)
	case 'E', 'C':
		if c.use == File {
			return 0, c.fail(pos, "%%%c is a path that may be absent, which cannot stand in a file name", d)
		}
		if d == 'E' {
			c.add(op{kind: opExe}, Exe)
		} else {
			c.add(op{kind: opCgroup}, Cgroup)
		}
	case 'L':
		return pos + 2, c.line(pos)
	case 'T':
		l, at, msg := compileLayout(c.timeFormat)
		if msg != "" {
			return 0, c.fail(pos, "%%T uses time %q, byte %d: %s", c.timeFormat, at+1, msg)
		}
		c.addTime(l)
	case '{':
		return c.inlineTime(pos)
	default:
		return 0, c.fail(pos, "unknown directive %q; there are %%H %%P %%U %%G %%F %%f %%T %%{FORMAT}T %%L %%N %%E %%C %%%%", c.text[pos:pos+2])
	}
	return pos + 2, nil
}

func (c *compiler) line(pos int) error {
	if c.use == File {
		return c.fail(pos, "%%L is the data, which cannot stand in a file name")
	}
	if c.lineAt > 0 {
		return c.fail(pos, "a second %%L; the first is at byte %d", c.lineAt)
	}
	c.flush()
	c.pre, c.ops = c.ops, nil
	c.lineAt = pos + 1
	c.fields |= Line
	return nil
}

func (c *compiler) inlineTime(pos int) (int, error) {
	end := strings.IndexByte(c.text[pos:], '}')
	if end < 0 || pos+end+1 >= len(c.text) || c.text[pos+end+1] != 'T' {
		return 0, c.fail(pos, "%%{ without }T; a time format in place is written %%{FORMAT}T")
	}
	end += pos
	l, at, msg := compileLayout(c.text[pos+2 : end])
	if msg != "" {
		return 0, c.fail(pos+2+at, "%s", msg)
	}
	c.addTime(l)
	return end + 2, nil
}

func (c *compiler) addTime(l *layout) { c.add(op{kind: opTime, layout: l}, Time) }

func (c *compiler) add(o op, f Fields) {
	c.flush()
	c.ops = append(c.ops, o)
	c.fields |= f
}

func (c *compiler) flush() {
	if len(c.lit) > 0 {
		c.ops = append(c.ops, op{kind: opText, text: string(c.lit)})
		c.lit = nil
	}
}

// checkFile refuses what no record could make a file name below dir. What depends on
// the record is checked when the file is opened.
func (c *compiler) checkFile(ops []op) error {
	if first := ops[0]; first.kind == opText && first.text[0] == '/' {
		return c.fail(0, "an absolute path; the name is taken below the output's dir")
	}
	if last := ops[len(ops)-1]; last.kind == opText && last.text[len(last.text)-1] == '/' {
		return c.fail(len(c.text)-1, "it ends in a slash; the file's name must follow")
	}
	pos := 0
	for elem := range strings.SplitSeq(c.text, "/") {
		switch elem {
		case "..", ".":
			return c.fail(pos, "the element %q; a name must stay below the output's dir", elem)
		case "":
			return c.fail(pos, "an empty element (two slashes)")
		}
		pos += len(elem) + 1
	}
	return nil
}
