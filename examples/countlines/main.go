// Command countlines is a receiver of one's own: it takes what mounts and relays of ftfuse
// send, and counts the lines of each host into a bbolt file, each line once, whatever is
// killed when. It shows what package receive asks of a Handler.
//
//	countlines -dir /var/lib/countlines -listen :7401 -db /var/lib/countlines/lines.db
//	countlines -db /var/lib/countlines/lines.db -print      (while it does not run)
//
// A mount sends to it as to `ftfuse receive`: primary = ["HOST:7401"].
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"ftfuse/receive"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "countlines:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("countlines", flag.ContinueOnError)
	f.SetOutput(stderr)
	o := receive.ServerOptions{Logger: slog.New(slog.NewTextHandler(stderr, nil))}
	f.StringVar(&o.Dir, "dir", "", "state `directory`: the queue")
	f.StringVar(&o.Listen, "listen", ":7401", "`address` to listen on")
	f.StringVar(&o.Cert, "cert", "", "certificate, a PEM `file`; with -key and -ca: TLS")
	f.StringVar(&o.Key, "key", "", "private key, a PEM `file`")
	f.StringVar(&o.CA, "ca", "", "who signs the peers' certificates, a PEM `file`")
	db := f.String("db", "", "bbolt `file` with the counts")
	print := f.Bool("print", false, "print the counts and end")
	if err := f.Parse(args); err != nil {
		return err
	}
	c, err := openCounts(*db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if *print {
		return c.print(stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	o.Handler = c
	s, err := receive.OpenServer(ctx, o)
	if err != nil {
		return err
	}
	return errors.Join(s.Serve(ctx), s.Close())
}
