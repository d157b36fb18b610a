//! Debian's docker-registry on loopback, for one test.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::sh;

pub struct Registry {
    child: Child,
    pub port: u16,
    /// With the certificate of its authority as `ca.crt`, where it speaks TLS.
    pub certs: PathBuf,
}

/// Stands for the port until it is known.
const PORT: &str = "@port@";

impl Registry {
    /// `tls`: with a certificate for localhost from an authority of its own; `login`: `ann` with the password `secret`.
    pub fn start(dir: &Path, tls: bool, login: bool) -> Self {
        let (home, mut config) = Self::prepare(dir);
        let certs = home.join("certs");
        if tls {
            let keys = home.join("keys");
            fs::create_dir_all(&keys).unwrap();
            sh(&format!(
                "cd {keys} && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt \
                 -addext basicConstraints=critical,CA:TRUE 2>&1 \
                 && openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout own.key -out own.csr 2>&1 \
                 && printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\n' > ext \
                 && openssl x509 -req -in own.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out own.crt 2>&1 \
                 && cp ca.crt {certs}/ca.crt",
                keys = keys.display(),
                certs = certs.display()
            ));
            config.push_str(&format!("  tls: {{certificate: {0}/own.crt, key: {0}/own.key}}\n", keys.display()));
        }
        if login {
            sh(&format!("htpasswd -Bbn ann secret > {}/users", home.display()));
            config.push_str(&format!("auth:\n  htpasswd: {{realm: lab, path: {}/users}}\n", home.display()));
        }
        Self::serve(&home, &config)
    }

    /// Answers only who brings a token that the key of `certificate` has signed; `realm` is where to get one.
    pub fn with_tokens(dir: &Path, realm: &str, certificate: &Path) -> Self {
        let (home, mut config) = Self::prepare(dir);
        config.push_str(&format!(
            "auth:\n  token: {{realm: '{realm}', service: lab, issuer: lab, rootcertbundle: {}}}\n",
            certificate.display()
        ));
        Self::serve(&home, &config)
    }

    fn prepare(dir: &Path) -> (PathBuf, String) {
        let home = dir.join("registry");
        fs::create_dir_all(home.join("certs")).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {0}/data}}\n  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{PORT}\n",
            home.display()
        );
        (home, config)
    }

    fn serve(home: &Path, config: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let certs = home.join("certs");
        fs::write(home.join("config.yml"), config.replace(PORT, &port.to_string())).unwrap();
        let log = fs::File::create(home.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(home.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { child, port, certs };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "docker-registry did not come up: {}",
                fs::read_to_string(home.join("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn name(&self, image: &str) -> String {
        format!("localhost:{}/{image}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
