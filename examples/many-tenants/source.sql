CREATE TABLE tenants (code varchar(20) PRIMARY KEY);
CREATE TABLE accounts (
    tenant varchar(20) NOT NULL,
    login varchar(40) NOT NULL,
    mail varchar(100),
    PRIMARY KEY (tenant, login)
);
CREATE TABLE services (id integer PRIMARY KEY, title varchar(40) NOT NULL);
CREATE TABLE accounts_services (
    tenant varchar(20) NOT NULL,
    login varchar(40) NOT NULL,
    service_id integer NOT NULL,
    granted_on date,
    PRIMARY KEY (tenant, login, service_id)
);
INSERT INTO tenants VALUES ('acme'), ('globex');
INSERT INTO accounts VALUES
    ('acme', 'Ann', 'ann@acme.example'), ('acme', 'bob', NULL),
    ('globex', 'ann', 'ann@globex.example');
INSERT INTO services VALUES (1, 'mail'), (2, 'files');
INSERT INTO accounts_services VALUES
    ('acme', 'Ann', 1, '2024-05-01'), ('acme', 'Ann', 2, '2024-05-02'), ('acme', 'bob', 1, NULL),
    ('globex', 'ann', 2, '2024-06-01'), ('globex', 'eve', 2, '2024-07-01');
