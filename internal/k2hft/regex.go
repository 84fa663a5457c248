package k2hft

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
)

// errRegex is why a POSIX regular expression has no counterpart in RE2.
var errRegex = errors.New("no counterpart in RE2")

// toRE2 returns the RE2 expression that matches what the POSIX extended one matches
// (regcomp(3) with REG_EXTENDED|REG_NEWLINE, as K2HFTFUSE compiles it, with the GNU
// escapes). whole says that a match is sure to be the whole line.
func toRE2(posix string) (re string, whole bool, err error) {
	var b, check strings.Builder
	for i := 0; i < len(posix); {
		var n int
		var out string
		switch posix[i] {
		case '\\':
			out, n, err = escape(posix[i:])
		case '[':
			out, n, err = bracket(posix[i:])
		case '(':
			if strings.HasPrefix(posix[i:], "(?") {
				return "", false, fmt.Errorf("%w: \"(?\"", errRegex)
			}
			out, n = "(", 1
		case '*', '+', '?', '{':
			out, n = repeat(posix[i:])
			if rest := posix[i+n:]; n > 0 && out[0] != '\\' && rest != "" && strings.IndexByte("*+?", rest[0]) >= 0 {
				err = fmt.Errorf("%w: a repetition of a repetition", errRegex)
			}
		default:
			out, n = posix[i:i+1], 1
		}
		if err != nil {
			return "", false, err
		}
		b.WriteString(out)
		if out == `\b` && posix[i+1] != 'b' {
			out = fmt.Sprintf("(?P<%s%d>)", map[byte]string{'<': wordBegin, '>': wordEnd}[posix[i+1]], i)
		}
		check.WriteString(out)
		i += n
	}
	re = b.String()
	if _, err := regexp.Compile(re); err != nil {
		return "", false, fmt.Errorf("%w: %w", errRegex, err)
	}
	if tree, err := syntax.Parse(check.String(), syntax.Perl); err != nil || !wordsBounded(tree) {
		return "", false, fmt.Errorf("%w: a \\< that no letter is sure to follow, or a \\> that none is sure to stand before", errRegex)
	}
	return re, isWhole(re), nil
}

// Names of the empty groups that stand for \< and \> where words are looked at.
const (
	wordBegin = "begin"
	wordEnd   = "end"
)

func isMark(re *syntax.Regexp, name string) bool {
	return re.Op == syntax.OpCapture && strings.HasPrefix(re.Name, name)
}

// wordsBounded reports whether a \b is what each \< and \> of re means: a letter is sure to follow
// the one, and to stand before the other. (RE2 has no look at what is around.)
func wordsBounded(re *syntax.Regexp) bool {
	if isMark(re, wordBegin) || isMark(re, wordEnd) {
		return false // not in a row
	}
	for i, sub := range re.Sub {
		row := re.Op == syntax.OpConcat
		switch {
		case row && isMark(sub, wordBegin) && i+1 < len(re.Sub) && atWord(re.Sub[i+1], true):
		case row && isMark(sub, wordEnd) && i > 0 && atWord(re.Sub[i-1], false):
		case !wordsBounded(sub):
			return false
		}
	}
	return true
}

// atWord reports whether all that re matches begins, or else ends, with a character of a word.
func atWord(re *syntax.Regexp, begins bool) bool {
	edge := 0
	switch re.Op {
	case syntax.OpLiteral:
		if !begins {
			edge = len(re.Rune) - 1
		}
		return re.Flags&syntax.FoldCase == 0 && isWord(re.Rune[edge], re.Rune[edge])
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			if !isWord(re.Rune[i], re.Rune[i+1]) {
				return false
			}
		}
		return len(re.Rune) > 0
	case syntax.OpRepeat:
		return re.Min > 0 && atWord(re.Sub[0], begins)
	case syntax.OpConcat:
		if !begins {
			edge = len(re.Sub) - 1
		}
		return atWord(re.Sub[edge], begins)
	case syntax.OpCapture, syntax.OpPlus, syntax.OpAlternate:
		return !slices.ContainsFunc(re.Sub, func(s *syntax.Regexp) bool { return !atWord(s, begins) })
	}
	return false
}

// isWord reports whether all from a to b are what \w is.
func isWord(a, b rune) bool {
	return a >= 'a' && b <= 'z' || a >= 'A' && b <= 'Z' || a >= '0' && b <= '9' || a == '_' && b == '_'
}

// escape translates what begins with a backslash.
func escape(s string) (string, int, error) {
	if len(s) == 1 {
		return `\\`, 1, nil
	}
	switch c := s[1]; {
	case c >= '1' && c <= '9':
		return "", 0, fmt.Errorf("%w: the back-reference \\%c", errRegex, c)
	case c == '<' || c == '>':
		return `\b`, 2, nil
	case c == '`':
		return `\A`, 2, nil
	case c == '\'':
		return `\z`, 2, nil
	case strings.IndexByte("wWsSbB", c) >= 0:
		return s[:2], 2, nil
	case c >= 0x80:
		return "", 1, nil // the bytes of the character follow
	}
	return regexp.QuoteMeta(s[1:2]), 2, nil
}

// bracket translates [...]: a backslash stands for itself there.
func bracket(s string) (string, int, error) {
	i, out := 1, "["
	if strings.HasPrefix(s[i:], "^") {
		i, out = i+1, out+"^"
	}
	for first := true; i < len(s); first = false {
		switch c := s[i]; {
		case c == ']' && !first:
			return out + "]", i + 1, nil
		case c == '[' && i+1 < len(s) && (s[i+1] == '.' || s[i+1] == '='):
			return "", 0, fmt.Errorf("%w: a collating element in a bracket", errRegex)
		case c == '[' && strings.HasPrefix(s[i+1:], ":"):
			end := strings.Index(s[i:], ":]")
			if end < 0 {
				return "", 0, fmt.Errorf("%w: a character class without its end", errRegex)
			}
			out += s[i : i+end+2]
			i += end + 2
			continue
		case c == '\\' || c == ']' || c == '[':
			out += `\` + string(c)
		default:
			out += s[i : i+1]
		}
		i++
	}
	return "", 0, fmt.Errorf("%w: a bracket without its end", errRegex)
}

var interval = regexp.MustCompile(`^\{(\d*)(,?)(\d*)\}`)

// repeat translates a repetition; a brace that is none is a brace.
func repeat(s string) (string, int) {
	if s[0] != '{' {
		return s[:1], 1
	}
	m := interval.FindStringSubmatch(s)
	switch {
	case m == nil || m[1] == "" && m[2] == "" && m[3] == "":
		return `\{`, 1
	case m[1] == "" && m[3] == "":
		return "*", len(m[0])
	case m[1] == "":
		return "{0," + m[3] + "}", len(m[0])
	}
	return m[0], len(m[0])
}

// isWhole reports whether re can match nothing but a whole line.
func isWhole(re string) bool {
	if alternates(re) {
		return false
	}
	begins := strings.HasPrefix(re, "^") || strings.HasPrefix(re, ".*") || strings.HasPrefix(re, "(.*)")
	stops := false
	for _, end := range []string{"$", ".*"} {
		stops = stops || strings.HasSuffix(re, end) && !strings.HasSuffix(re, `\`+end)
	}
	return begins && (stops || strings.HasSuffix(re, "(.*)"))
}

// alternates reports whether re has a | outside of all groups.
func alternates(re string) bool {
	depth := 0
	for i := 0; i < len(re); i++ {
		switch re[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			depth--
		case '[':
			for i += 2; i < len(re) && re[i] != ']'; i++ {
				if re[i] == '\\' {
					i++
				}
			}
		case '|':
			if depth == 0 {
				return true
			}
		}
	}
	return false
}

// piece is a part of a replacement: text, or the group of that number.
type piece struct {
	text  string
	group int // -1: text
}

// pieces reads a replacement: & and $0 to $9 are groups, a backslash takes the meaning off.
func pieces(replace string) []piece {
	var all []piece
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			all = append(all, piece{text.String(), -1})
			text.Reset()
		}
	}
	for i := 0; i < len(replace); i++ {
		switch c := replace[i]; {
		case c == '\\' && i+1 < len(replace):
			i++
			text.WriteByte(replace[i])
		case c == '\\':
		case c == '&':
			flush()
			all = append(all, piece{group: 0})
		case c == '$' && i+1 < len(replace) && replace[i+1] >= '0' && replace[i+1] <= '9':
			flush()
			i++
			all = append(all, piece{group: int(replace[i] - '0')})
		default:
			text.WriteByte(c)
		}
	}
	flush()
	return all
}

// rewrite is a filter of ours: a match, and what the line becomes.
type rewrite struct {
	literal string // "": match
	match   string
	replace *string
}

// rewriting returns the filter that does what a pattern of ALLOW does: a literal passes the
// line as it is; of a line that a regular expression matches, what the replacement says is
// all that is passed on, and without one, what was matched.
func rewriting(p *pattern) (rewrite, error) {
	if !p.regex {
		return rewrite{literal: p.text}, nil
	}
	re, whole, err := toRE2(p.text)
	if err != nil {
		return rewrite{}, err
	}
	if whole && (p.replace == nil || *p.replace == "$0" || *p.replace == "&") {
		return rewrite{match: re}, nil
	}
	all := []piece{{group: 0}}
	if p.replace != nil {
		all = pieces(*p.replace)
	}
	return wrap(re, whole, all), nil
}

// wrap makes re match the whole line, so that the replacement takes its place.
func wrap(re string, whole bool, all []piece) rewrite {
	groups := regexp.MustCompile(re).NumSubexp()
	shift := 0
	if !whole {
		open := "(?:"
		for _, p := range all {
			if p.group == 0 {
				open, shift = "(", 1
			}
		}
		re = "^.*?" + open + re + ").*$"
	}
	var b strings.Builder
	for _, p := range all {
		switch {
		case p.group < 0:
			b.WriteString(strings.ReplaceAll(p.text, "$", "$$"))
		case p.group <= groups: // others are empty
			b.WriteString("${" + strconv.Itoa(p.group+shift) + "}")
		}
	}
	text := b.String()
	return rewrite{match: re, replace: &text}
}
