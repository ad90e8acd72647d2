//! What answers in the pods, and can be told not to.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    lab::Namespace,
    programs::{PATIENCE, conversation},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic_health::{ServingStatus, server::health_reporter};

/// How often a server looks for connections and whether to stop.
const TICK: Duration = Duration::from_millis(10);

/// Takes connections until it is dropped; those that are open then live on.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    peers: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Server {
    fn start(namespace: &Namespace, port: u16, serve: impl Fn(TcpStream) + Send + 'static) -> Result<Self> {
        let listener: TcpListener = conversation::listen(namespace, port)?;
        let (stop, peers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&peers));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    thread::sleep(TICK);
                    continue;
                };
                seen.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.ip().to_canonical());
                if stream.set_nonblocking(false).is_ok() && stream.set_read_timeout(Some(PATIENCE)).is_ok() {
                    serve(stream);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread), peers })
    }

    /// Says its name to everybody, and then repeats each line.
    pub fn named(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let name = name.to_owned();
        Self::start(namespace, port, move |mut stream| {
            let name = name.clone();
            // Ends with the connection.
            thread::spawn(move || {
                let mut answer = format!("{name}\n");
                while stream.write_all(answer.as_bytes()).is_ok() {
                    let Ok(line) = read_line(&stream) else { return };
                    answer = line;
                }
            });
        })
    }

    /// Answers each request by HTTP with the status that stands in `status`, and an echo of its first line.
    pub fn http(namespace: &Namespace, port: u16, status: Arc<AtomicU16>) -> Result<Self> {
        Self::start(namespace, port, move |mut stream| {
            let mut reader = BufReader::new(&stream);
            let mut lines = Vec::new();
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|length| length > 2) {
                lines.push(std::mem::take(&mut line));
            }
            let is_right = lines.first().is_some_and(|line| line.trim_end() == "GET /healthz?deep=1 HTTP/1.1")
                && lines.iter().any(|line| line.eq_ignore_ascii_case("host: collector.example\r\n"));
            let status = if is_right { status.load(Ordering::Relaxed) } else { 400 };
            // Who has gone meanwhile needs no answer.
            let _ = write!(stream, "HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n");
        })
    }

    /// Who has connected.
    pub fn peers(&self) -> BTreeSet<IpAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client's connection to a named server.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    /// Who answers.
    pub name: String,
}

impl Session {
    /// Dials from a namespace.
    pub fn open(from: &Namespace, target: SocketAddr) -> Result<Self> {
        let stream = from
            .run(|| TcpStream::connect_timeout(&target, PATIENCE))
            .with_context(|| format!("cannot connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = read_line(&stream)?.trim_end().to_owned();
        Ok(Self { stream, name })
    }

    /// A line, and the same back.
    pub fn exchange(&mut self, line: &str) -> Result<()> {
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        let answer = read_line(&self.stream)?;
        ensure!(answer.trim_end() == line, "{answer:?} came back instead of {line:?}");
        Ok(())
    }
}

/// A line with its end; byte by byte, so that nothing of the next is taken.
fn read_line(mut stream: &TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

/// The gRPC health service in a pod; ends on drop.
#[derive(Debug)]
pub struct GrpcServer {
    set: mpsc::UnboundedSender<ServingStatus>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is asked for.
pub const GRPC_SERVICE: &str = "sluice.telemetry.v1.DialOut";

impl GrpcServer {
    /// Serves on a port over both families, and is well.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
        listener.set_nonblocking(true)?;
        let (set, mut wanted) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || {
            let served: Result<()> = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let (reporter, service) = health_reporter();
                reporter.set_service_status(GRPC_SERVICE, ServingStatus::Serving).await;
                tokio::spawn(async move {
                    while let Some(status) = wanted.recv().await {
                        reporter.set_service_status(GRPC_SERVICE, status).await;
                    }
                });
                let server = tonic::transport::Server::builder().add_service(service);
                tokio::select! {
                    served = server.serve_with_incoming(TcpListenerStream::new(listener)) => Ok(served?),
                    _ = stopped => Ok(()),
                }
            });
            if let Err(error) = served {
                eprintln!("the gRPC server ended: {error:#}");
            }
        });
        Ok(Self { set, stop: Some(stop), thread: Some(thread) })
    }

    /// What it says of itself from here on.
    pub fn set(&self, status: ServingStatus) -> Result<()> {
        self.set.send(status).context("the server has ended")
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
