package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Errors of making certificates.
var (
	// ErrExists: a file is there already and was left as it is.
	ErrExists = errors.New("the file is there already")
	// ErrName: a name that no host can have.
	ErrName = errors.New("not a name or an address of a host")
)

// How long certificates are good.
const (
	DefaultCALife   = 10 * 365 * 24 * time.Hour
	DefaultHostLife = 2 * 365 * 24 * time.Hour

	clockSkew = time.Hour // by which a peer's clock may be behind
)

// Made is a certificate and its key, in PEM files: the key's mode is 0600, the
// certificate's 0644.
type Made struct {
	Cert, Key string // their paths
	NotAfter  time.Time
}

// caFiles are the files of the CA in dir.
func caFiles(dir string) Made {
	return Made{Cert: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "ca-key.pem")}
}

// MakeCA makes a CA of that name in dir: ca.pem, which every host gets, and ca-key.pem,
// with which hosts' certificates are made. It never replaces one (ErrExists). A dir that is
// not there is made, for its owner alone.
func MakeCA(dir, name string, life time.Duration) (Made, error) {
	m := caFiles(dir)
	for _, file := range []string{m.Cert, m.Key} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return Made{}, errors.Join(fmt.Errorf("%w: %s", ErrExists, file), errOther(err))
		}
	}
	key, err := newKey()
	if err != nil {
		return Made{}, err
	}
	t, err := template(name, life)
	if err != nil {
		return Made{}, err
	}
	t.IsCA, t.BasicConstraintsValid, t.MaxPathLenZero = true, true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return m.sign(t, t, key, key)
}

// errOther is err unless it is nil or says that something is there.
func errOther(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// MakeHost makes a certificate for one host, by the CA in caDir, in dir: NAME.pem and
// NAME-key.pem, where NAME is the first of names. It is good for both ends of a connection
// and for all of names, which are host names and IP addresses. With replace it takes the
// place of an older one, which a running role notices. A dir that is not there is made, for
// its owner alone.
func MakeHost(caDir, dir string, names []string, life time.Duration, replace bool) (Made, error) {
	if len(names) == 0 {
		return Made{}, fmt.Errorf("%w: none is given", ErrName)
	}
	for _, name := range names {
		if !validName(name) {
			return Made{}, fmt.Errorf("%w: %q", ErrName, name)
		}
	}
	ca, caKey, err := readCA(caFiles(caDir))
	if err != nil {
		return Made{}, err
	}
	m := Made{Cert: filepath.Join(dir, names[0]+".pem"), Key: filepath.Join(dir, names[0]+"-key.pem")}
	if own := caFiles(caDir); m.Cert == own.Cert || m.Key == own.Key || m.Cert == own.Key {
		return Made{}, fmt.Errorf("%w: %q is what the files of the CA are called", ErrName, names[0])
	}
	for file, kind := range map[string]string{m.Cert: "CERTIFICATE", m.Key: "PRIVATE KEY"} {
		if err := mayWrite(file, kind, replace); err != nil {
			return Made{}, err
		}
	}
	key, err := newKey()
	if err != nil {
		return Made{}, err
	}
	t, err := template(names[0], life)
	if err != nil {
		return Made{}, err
	}
	if t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	return m.sign(t, ca, key, caKey)
}

// mayWrite returns nil where nothing is there, or what may be replaced: a file of that kind,
// for the key of the host "a" is called what the certificate of a host "a-key" is.
func mayWrite(file, kind string, replace bool) error {
	_, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if replace && err == nil {
		if _, err = readBlock(file, kind); err == nil {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("%w: %s", ErrExists, file), errOther(err))
}

// validName takes IP addresses and what can be a host's name in a certificate.
func validName(name string) bool {
	if net.ParseIP(name) != nil {
		return true
	}
	if name == "" || len(name) > 253 || name[0] == '.' || name[0] == '-' || strings.HasSuffix(name, ".") || strings.Contains(name, "..") {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && r != '_' && r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// maxCommonName is ub-common-name of RFC 5280.
const maxCommonName = 64

func template(name string, life time.Duration) (*x509.Certificate, error) {
	if life <= 0 {
		return nil, fmt.Errorf("a certificate that is good for %v", life)
	}
	now := time.Now()
	t := &x509.Certificate{NotBefore: now.Add(-clockSkew), NotAfter: now.Add(life)} // the serial number is made by CreateCertificate
	if len(name) <= maxCommonName {
		t.Subject = pkix.Name{CommonName: name}
	}
	return t, nil
}

// sign writes the files, the key first.
func (m Made) sign(t, parent *x509.Certificate, key *ecdsa.PrivateKey, by crypto.Signer) (Made, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		return Made{}, fmt.Errorf("sign the certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Made{}, fmt.Errorf("encode the key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(m.Key), 0o700); err != nil {
		return Made{}, fmt.Errorf("make the directory: %w", err)
	}
	if err := writePEM(m.Key, "PRIVATE KEY", keyDER, 0o600); err != nil {
		return Made{}, err
	}
	if err := writePEM(m.Cert, "CERTIFICATE", der, 0o644); err != nil {
		return Made{}, err
	}
	m.NotAfter = t.NotAfter
	return m, nil
}

// writePEM puts a file in its place whole and on disk, whatever was there.
func writePEM(path, kind string, der []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readCA reads what MakeCA made, or another CA with a PKCS #8 key.
func readCA(m Made) (*x509.Certificate, crypto.Signer, error) {
	fail := func(file string, err error) (*x509.Certificate, crypto.Signer, error) {
		return nil, nil, fmt.Errorf("%w: read the CA's %s: %w; `ftfuse cert ca` makes one", ErrCertificates, file, err)
	}
	der, err := readBlock(m.Cert, "CERTIFICATE")
	if err != nil {
		return fail(m.Cert, err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(m.Cert, err)
	}
	if !ca.IsCA {
		return fail(m.Cert, errors.New("it is not the certificate of a CA"))
	}
	if time.Now().After(ca.NotAfter) {
		return fail(m.Cert, fmt.Errorf("it was good until %s", ca.NotAfter.Format(time.DateOnly)))
	}
	if der, err = readBlock(m.Key, "PRIVATE KEY"); err != nil {
		return fail(m.Key, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fail(m.Key, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fail(m.Key, errors.New("it cannot sign"))
	}
	if public, ok := ca.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(signer.Public()) {
		return fail(m.Key, fmt.Errorf("it is not the key of %s", m.Cert))
	}
	return ca, signer, nil
}

func readBlock(path, kind string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			return block.Bytes, nil
		}
	}
	return nil, fmt.Errorf("it has no PEM block %s", kind)
}
