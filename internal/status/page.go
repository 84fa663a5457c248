package status

import (
	"html/template"
	"io"
	"strings"
)

var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>ftfuse {{.Role.Role}} on {{.Role.Host}}</title>
<style>body{font:15px/1.4 system-ui,sans-serif;margin:2em}pre{font:13px/1.45 ui-monospace,monospace}</style></head>
<body><h1>ftfuse {{.Role.Role}} on {{.Role.Host}}</h1>
<pre>{{.Text}}</pre>
<p><a href="/metrics">metrics</a> · <a href="/readyz">readyz</a> · <a href="/healthz">healthz</a></p>
</body></html>
`))

// Page writes r as a page of HTML.
func Page(w io.Writer, r *Role) error {
	var text strings.Builder
	if err := Text(&text, r); err != nil {
		return err
	}
	return page.Execute(w, struct {
		Role *Role
		Text string
	}{r, text.String()})
}
