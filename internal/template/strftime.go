package template

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Conversions lists the letters that may follow % in a time format, in the C locale of
// strftime(3); besides, %:z is +hh:mm and %- nine digits of nanoseconds. (GNU's flag
// "-", as in %-d, does not exist here: %-d is the nanoseconds and a d.)
const Conversions = "aAbBcCdDeFgGhHIjklmMpPrRsStTuUVwWxXyYzZ%"

// layout is a compiled strftime format: conversions and literal bytes.
type layout struct {
	ops []timeOp
}

// timeOp is a literal (conv 0), the nanoseconds (conv '-'), the zone with a colon
// (conv ':') or the conversion of that letter.
type timeOp struct {
	conv byte
	text string
}

// compileLayout returns the layout, or where it is wrong and why.
func compileLayout(format string) (l *layout, at int, msg string) {
	if format == "" {
		return nil, 0, "an empty time format"
	}
	l = &layout{}
	var lit []byte
	flush := func() {
		if len(lit) > 0 {
			l.ops = append(l.ops, timeOp{text: string(lit)})
			lit = nil
		}
	}
	for i := 0; i < len(format); i++ {
		if format[i] == 0 || format[i] == '\n' {
			return nil, i, "a control byte in a time format"
		}
		if format[i] != '%' {
			lit = append(lit, format[i])
			continue
		}
		at := i
		if i++; i == len(format) {
			return nil, at, "a lone % at the end of the time format; write %% for a percent sign"
		}
		switch conv := format[i]; {
		case conv == '%':
			lit = append(lit, '%')
		case conv == '-':
			flush()
			l.ops = append(l.ops, timeOp{conv: '-'})
		case conv == ':' && i+1 < len(format) && format[i+1] == 'z':
			i++
			flush()
			l.ops = append(l.ops, timeOp{conv: ':'})
		case known(conv):
			flush()
			l.ops = append(l.ops, timeOp{conv: conv})
		default:
			return nil, at, fmt.Sprintf("unknown time conversion %q; there are %%- (nanoseconds), %%:z and %% with one of %s", format[at:i+1], Conversions)
		}
	}
	flush()
	return l, 0, ""
}

func known(conv byte) bool {
	return strings.IndexByte(Conversions, conv) >= 0
}

// timeCache formats times, most of which fall into the second of the one before.
type timeCache struct {
	layout *layout
	zone   *time.Location
	valid  bool
	second int64
	text   []byte // of that second
	nanos  []int  // where the nine digits go
}

func (c *timeCache) append(dst []byte, ns int64) []byte {
	second, nano := ns/1e9, ns%1e9
	if nano < 0 {
		second, nano = second-1, nano+1e9
	}
	if !c.valid || c.second != second {
		c.fill(second)
	}
	base := len(dst)
	dst = append(dst, c.text...)
	for _, at := range c.nanos {
		digits := dst[base+at : base+at+9]
		for i, n := 8, nano; i >= 0; i-- {
			digits[i] = byte('0' + n%10)
			n /= 10
		}
	}
	return dst
}

func (c *timeCache) fill(second int64) {
	t := time.Unix(second, 0).In(c.zone)
	c.text, c.nanos = c.text[:0], c.nanos[:0]
	for _, o := range c.layout.ops {
		switch o.conv {
		case 0:
			c.text = append(c.text, o.text...)
		case '-':
			c.nanos = append(c.nanos, len(c.text))
			c.text = append(c.text, "000000000"...)
		default:
			c.text = appendConv(c.text, o.conv, t)
		}
	}
	c.second, c.valid = second, true
}

// composite conversions, as the C locale spells them.
var composite = map[byte]string{
	'c': "%a %b %e %H:%M:%S %Y", 'D': "%m/%d/%y", 'F': "%Y-%m-%d", 'r': "%I:%M:%S %p",
	'R': "%H:%M", 'T': "%H:%M:%S", 'x': "%m/%d/%y", 'X': "%H:%M:%S",
}

func appendConv(dst []byte, conv byte, t time.Time) []byte {
	if parts, ok := composite[conv]; ok {
		for i := 0; i < len(parts); i++ {
			if parts[i] != '%' {
				dst = append(dst, parts[i])
				continue
			}
			i++
			dst = appendConv(dst, parts[i], t)
		}
		return dst
	}
	switch conv {
	case 'a':
		return append(dst, t.Weekday().String()[:3]...)
	case 'A':
		return append(dst, t.Weekday().String()...)
	case 'b', 'h':
		return append(dst, t.Month().String()[:3]...)
	case 'B':
		return append(dst, t.Month().String()...)
	case 't':
		return append(dst, '\t')
	case 'p', 'P':
		return append(dst, halfOfDay(conv, t.Hour())...)
	case 's':
		return strconv.AppendInt(dst, t.Unix(), 10)
	case 'z', ':':
		return appendZone(dst, conv == ':', t)
	case 'Z':
		name, _ := t.Zone()
		return append(dst, name...)
	}
	n, width, fill := number(conv, t)
	return pad(dst, n, width, fill)
}

// number returns the value, width and filling of a numeric conversion.
func number(conv byte, t time.Time) (n, width int, fill byte) {
	year, week := t.ISOWeek()
	switch conv {
	case 'C':
		return t.Year() / 100, 2, '0'
	case 'd':
		return t.Day(), 2, '0'
	case 'e':
		return t.Day(), 2, ' '
	case 'g':
		return year % 100, 2, '0'
	case 'G':
		return year, 4, '0'
	case 'H':
		return t.Hour(), 2, '0'
	case 'k':
		return t.Hour(), 2, ' '
	case 'I':
		return (t.Hour()+11)%12 + 1, 2, '0'
	case 'l':
		return (t.Hour()+11)%12 + 1, 2, ' '
	case 'j':
		return t.YearDay(), 3, '0'
	case 'm':
		return int(t.Month()), 2, '0'
	case 'M':
		return t.Minute(), 2, '0'
	case 'S':
		return t.Second(), 2, '0'
	case 'u':
		return (int(t.Weekday())+6)%7 + 1, 1, '0'
	case 'w':
		return int(t.Weekday()), 1, '0'
	case 'U': // weeks begin on Sunday
		return (t.YearDay() + 6 - int(t.Weekday())) / 7, 2, '0'
	case 'W': // weeks begin on Monday
		return (t.YearDay() + 6 - (int(t.Weekday())+6)%7) / 7, 2, '0'
	case 'V':
		return week, 2, '0'
	case 'y':
		return t.Year() % 100, 2, '0'
	default: // 'Y'
		return t.Year(), 1, '0'
	}
}

func pad(dst []byte, n, width int, fill byte) []byte {
	limit := 1
	for range width - 1 {
		limit *= 10
	}
	for ; limit > 1 && n < limit && n >= 0; limit /= 10 {
		dst = append(dst, fill)
	}
	return strconv.AppendInt(dst, int64(n), 10)
}

func halfOfDay(conv byte, hour int) string {
	switch {
	case conv == 'p' && hour < 12:
		return "AM"
	case conv == 'p':
		return "PM"
	case hour < 12:
		return "am"
	}
	return "pm"
}

func appendZone(dst []byte, colon bool, t time.Time) []byte {
	_, offset := t.Zone()
	sign := byte('+')
	if offset < 0 {
		sign, offset = '-', -offset
	}
	dst = append(dst, sign)
	dst = pad(dst, offset/3600, 2, '0')
	if colon {
		dst = append(dst, ':')
	}
	return pad(dst, offset/60%60, 2, '0')
}
