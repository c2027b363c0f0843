//! Ports that no request goes to unless the settings say so.
//!
//! Neighbours: `rules` asks, the settings show the list as the default of `blocks.http.deny_ports`.

/// The ports from 21 on that browsers refuse ("bad ports" of the Fetch standard, section 2.9): services there read a request
/// as commands of their own, so that a job could send mail or print through the worker. Beside them NATS, Redis and
/// memcached, which also read line by line. None of them is where anybody serves HTTP. What is below 21 (echo, discard,
/// the time of day) obeys nobody, and is where people point a request that is to be refused.
pub(crate) const DENIED_PORTS: &[u16] = &[
    21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111, 113, 115, 117,
    119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548,
    554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 4222, 5060,
    5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211,
];
