CREATE TABLE tenants (id integer PRIMARY KEY, code varchar(20) NOT NULL UNIQUE);
CREATE TABLE accounts (
    tenant_id integer NOT NULL REFERENCES tenants,
    login varchar(40) NOT NULL,
    mail varchar(100),
    PRIMARY KEY (tenant_id, login)
);
CREATE TABLE services (id integer PRIMARY KEY, title varchar(40) NOT NULL UNIQUE);
CREATE TABLE grants (
    tenant_id integer NOT NULL,
    login varchar(40) NOT NULL,
    service_id integer NOT NULL REFERENCES services,
    granted_on date,
    PRIMARY KEY (tenant_id, login, service_id),
    FOREIGN KEY (tenant_id, login) REFERENCES accounts
);
INSERT INTO tenants VALUES (7, 'acme');
INSERT INTO accounts VALUES (7, 'ann', 'ann@before.example');
INSERT INTO services VALUES (3, 'mail');
INSERT INTO grants VALUES (7, 'ann', 3, '2020-01-01');
