CREATE TABLE staff (
    staff_uuid uuid PRIMARY KEY,
    login varchar(40) NOT NULL UNIQUE,
    secret varchar(200) NOT NULL,
    hired_on timestamp without time zone NOT NULL  -- the office's clock in Berlin
);
CREATE TABLE customers (
    id serial PRIMARY KEY,
    login varchar(40) NOT NULL UNIQUE,
    contact json,
    cared_for_by uuid REFERENCES staff,
    avatar bytea,
    score numeric(8, 3),
    is_gone boolean NOT NULL DEFAULT false
);
INSERT INTO staff VALUES
    ('f81d4fae-7dec-11d0-a765-00a0c91e6bf6', 'lea', '$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b/dWRWJTmaaJObG',
     '2024-07-01 09:00:00'),
    ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'max', '$argon2id$v=19$m=65536,t=3,p=4$b3RoZXJzYWx0$R8Jz0tUyDyuyvXx5VZzVUyXbXWk3v9aB',
     '2024-10-27 02:30:00');  -- an hour that Berlin's clocks showed twice: nobody can tell which
INSERT INTO customers (login, contact, cared_for_by, avatar, score, is_gone) VALUES
    ('anton', '{"city": "Köln", "phones": ["0221"]}', 'f81d4fae-7dec-11d0-a765-00a0c91e6bf6', '\x00ff10', 1.250, false),
    ('berta', NULL, NULL, NULL, 0.000, false),
    ('caesar', '{"city": "Bonn"}', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', NULL, 99999.999, false),
    ('dora', '{}', NULL, NULL, NULL, true);
