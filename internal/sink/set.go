package sink

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"ftfuse/internal/output"
	"ftfuse/internal/template"
)

// errSet is returned for a stored template set that cannot be used.
var errSet = errors.New("sink: stored template set")

// Output says which records go to which file below Dir, and in what form: the keys of
// [[receive.output]] in docs/configuration.md. A template set stores it like this.
type Output struct {
	Hosts  string `json:"hosts"` // glob over the record's host
	Path   string `json:"path"`  // doublestar glob over the record's path
	Dir    string `json:"dir"`   // absolute and clean
	File   string `json:"file"`
	Format string `json:"format"`
	Time   string `json:"time"`

	// Name makes the output one for the batches of some routes only, which are all of one host;
	// see Options.Members.
	Name string `json:"name,omitempty"`

	Files output.Perm `json:"files,omitzero"` // of what it makes: a redo makes it alike

	Rotate Rotate `json:"-"` // changes no byte of what is rendered
}

// storedSet is the JSON form of a template set, which the queue keeps under
// "set/<id>" as long as batches were assigned by it.
type storedSet struct {
	Version  int      `json:"version"`
	Zone     string   `json:"zone"`
	ZoneData []byte   `json:"zone_data,omitempty"`
	Outputs  []Output `json:"outputs"`
}

// Versions of a stored set: what the same records render as depends on it, so that a redo renders
// what an older version assigned as that did.
const (
	setPassesEnds = 1 // ends without bytes are passed over
	setVersion    = 2
)

// set is the outputs of one configuration, compiled. It is immutable, and what it
// renders depends on nothing else: a redo by the same set gives the same bytes.
type set struct {
	id      uint64 // first 8 bytes of the SHA-256 of raw
	raw     []byte
	zone    *time.Location
	outputs []*out
	ends    bool                        // a long line's end shows also where it has no bytes
	numbers bool                        // some template shows %N: lines must be counted
	members func(route uint32) []string // see Options
}

// out is one output of a set.
type out struct {
	Output
	index  int
	file   *template.Template
	format *template.Template
	exact  bool // format is "%L"
	mixes  bool // records of several (host, path) can come to one file
	static bool // the file's name depends on host and path alone
}

// newSet compiles the outputs of the configuration, with the zone of this host.
func newSet(outputs []Output) (*set, error) {
	s := storedSet{Version: setVersion, Zone: "UTC", Outputs: outputs}
	uses, err := s.usesTime()
	if err != nil {
		return nil, err
	}
	if uses {
		zone, err := template.LocalZone()
		if err != nil {
			return nil, err
		}
		s.Zone, s.ZoneData = zone.Name, zone.Data
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode template set: %w", err)
	}
	made, err := parseSet(raw)
	if err != nil {
		return nil, err
	}
	for i, o := range made.outputs {
		o.Output = outputs[i] // with what is not stored
	}
	return made, nil
}

func (s *storedSet) usesTime() (bool, error) {
	for _, o := range s.Outputs {
		for use, text := range map[template.Use]string{template.File: o.File, template.Format: o.Format} {
			t, err := template.Compile(use, text, o.Time)
			if err != nil {
				return false, err
			}
			if t.Fields()&template.Time != 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// parseSet compiles a stored set.
func parseSet(raw []byte) (*set, error) {
	var st storedSet
	if err := json.Unmarshal(raw, &st); err != nil {
		return nil, fmt.Errorf("%w: %w", errSet, err)
	}
	if st.Version < setPassesEnds || st.Version > setVersion {
		return nil, fmt.Errorf("%w: version %d, this build reads %d to %d; start the newer ftfuse until the queue is drained", errSet, st.Version, setPassesEnds, setVersion)
	}
	sum := sha256.Sum256(raw)
	s := &set{id: binary.BigEndian.Uint64(sum[:]), raw: raw, ends: st.Version > setPassesEnds}
	var err error
	if s.zone, err = (template.Zone{Name: st.Zone, Data: st.ZoneData}).Location(); err != nil {
		return nil, fmt.Errorf("%w: %w", errSet, err)
	}
	for i, sp := range st.Outputs {
		o, err := compileOut(i, sp)
		if err != nil {
			return nil, err
		}
		s.numbers = s.numbers || (o.file.Fields()|o.format.Fields())&template.Seq != 0
		s.outputs = append(s.outputs, o)
	}
	return s, nil
}

func compileOut(i int, sp Output) (*out, error) {
	o := &out{Output: sp, index: i}
	var err error
	if o.file, err = template.Compile(template.File, sp.File, sp.Time); err != nil {
		return nil, err
	}
	if o.format, err = template.Compile(template.Format, sp.Format, sp.Time); err != nil {
		return nil, err
	}
	if !doublestar.ValidatePattern(sp.Hosts) || !doublestar.ValidatePattern(sp.Path) {
		return nil, fmt.Errorf("output %d: bad glob in hosts %q or path %q", i+1, sp.Hosts, sp.Path)
	}
	f := o.file.Fields()
	o.exact = o.format.Exact()
	o.mixes = !o.file.WholePath() || f&template.Host == 0 && sp.Name == "" // those of routes have one host's
	o.static = f&^(template.Host|template.Path) == 0
	return o, nil
}

// matches reports whether records of that host and path come to o, in a batch of a route with
// these members.
func (o *out) matches(host, path string, members []string) bool {
	if o.Name != "" && !slices.Contains(members, o.Name) {
		return false
	}
	// "*" is every host, also one that calls itself "a/b": its records are not to vanish.
	return (o.Hosts == "*" || doublestar.MatchUnvalidated(o.Hosts, host)) && doublestar.MatchUnvalidated(o.Path, path)
}
